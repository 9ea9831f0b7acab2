"""RNN-T and TDT: equal to their definition, path by path, and an utterance's loss is its own."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from support.waits import Waits
from torch import Tensor
from transformers.loss.loss_tdt import tdt_loss

from trainer.losses.transducer import arc_scores, has_path, rnnt_losses, tdt_losses

DURATIONS = (0, 1, 2, 3, 4)


def add(xs: Sequence[float]) -> float:
    """Log of the sum of exponentials; -inf of nothing."""
    top = max(xs, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(x - top) for x in xs))


def slow(blank, token, duration, durations, n_frames: int, n_tokens: int) -> float:
    """The recursion as the papers write it, in Python's floats. `duration` None: RNN-T."""
    alpha = {(0, 0): 0.0}
    for t, u in itertools.product(range(n_frames), range(n_tokens + 1)):
        if (t, u) == (0, 0):
            continue
        found = []
        for i, d in enumerate(durations):
            if duration is None and d not in (0, 1):
                continue
            if d > 0 and t - d >= 0:
                extra = 0.0 if duration is None else float(duration[t - d, u, i])
                found.append(alpha[t - d, u] + float(blank[t - d, u]) + extra)
            if t - d >= 0 and u > 0 and not (duration is None and d == 1):
                extra = 0.0 if duration is None else float(duration[t - d, u - 1, i])
                found.append(alpha[t - d, u - 1] + float(token[t - d, u - 1]) + extra)
        alpha[t, u] = add(found)
    last = []
    for i, d in enumerate(durations):
        if d > 0 and n_frames - d >= 0 and not (duration is None and d != 1):
            extra = 0.0 if duration is None else float(duration[n_frames - d, n_tokens, i])
            last.append(alpha[n_frames - d, n_tokens] + float(blank[n_frames - d, n_tokens]) + extra)
    return -add(last)


def enumerated(blank, token, duration, durations, n_frames: int, n_tokens: int) -> float:
    """Every path, one after the other."""

    def paths(t: int, u: int, so_far: float):
        if t == n_frames:
            if u == n_tokens:
                yield so_far
            return
        for i, d in enumerate(durations):
            extra = 0.0 if duration is None else float(duration[t, u, i])
            if duration is None and d > 1:
                continue
            last = t + d == n_frames and u == n_tokens
            if d > 0 and (t + d < n_frames or last):
                yield from paths(t + d, u, so_far + float(blank[t, u]) + extra)
            if u < n_tokens and t + d < n_frames and not (duration is None and d == 1):
                yield from paths(t + d, u + 1, so_far + float(token[t, u]) + extra)

    return -add(list(paths(0, 0, 0.0)))


def drawn(B: int, T: int, U: int, V: int = 7, D: int = 5, dtype=torch.float64, seed: int = 0):
    torch.manual_seed(seed)
    logits = torch.randn(B, T, U, V, dtype=dtype) * 2
    labels = torch.randint(0, V - 1, (B, U - 1))
    duration = torch.randn(B, T, U, D, dtype=dtype).log_softmax(-1)
    return logits, labels, duration


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
@pytest.mark.parametrize("durations", [DURATIONS, (0, 1), (1, 2), (0, 1, 2, 4, 8)])
def test_tdt_is_its_definition(dtype, within: float, durations) -> None:
    logits, labels, duration = drawn(4, 13, 6, D=len(durations), dtype=dtype)
    frames, tokens = lengths(13, 9, 6, 12), lengths(5, 3, 0, 5)
    blank, token = arc_scores(logits, labels, 6, sigma=0.05)
    ours = tdt_losses(blank, token, duration, durations, frames, tokens)
    for b in range(4):
        wanted = slow(blank[b], token[b], duration[b], durations, int(frames[b]), int(tokens[b]))
        assert float(ours[b]) == pytest.approx(wanted, rel=within)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_rnnt_is_its_definition(dtype, within: float) -> None:
    logits, labels, _ = drawn(3, 11, 7, dtype=dtype)
    frames, tokens = lengths(11, 5, 1), lengths(6, 4, 2)
    blank, token = arc_scores(logits, labels, 6)
    ours = rnnt_losses(blank, token, frames, tokens)
    for b in range(3):
        wanted = slow(blank[b], token[b], None, (0, 1), int(frames[b]), int(tokens[b]))
        assert float(ours[b]) == pytest.approx(wanted, rel=within)


@pytest.mark.parametrize(("T", "L"), [(1, 0), (1, 2), (3, 2), (4, 3)])
def test_the_sum_is_over_every_path_once(T: int, L: int) -> None:
    logits, labels, duration = drawn(1, T, L + 1)
    blank, token = arc_scores(logits, labels, 6)
    tdt = tdt_losses(blank, token, duration, DURATIONS, lengths(T), lengths(L))
    rnnt = rnnt_losses(blank, token, lengths(T), lengths(L))
    assert float(tdt) == pytest.approx(enumerated(blank[0], token[0], duration[0], DURATIONS, T, L), abs=1e-9)
    assert float(rnnt) == pytest.approx(enumerated(blank[0], token[0], None, (0, 1), T, L), abs=1e-9)


def test_the_probabilities_of_all_transcripts_add_up_to_one() -> None:
    """With one token in the vocabulary, the probabilities of 0, 1, 2, … tokens add up to one."""
    torch.manual_seed(1)
    logits = torch.randn(1, 2, 40, 2, dtype=torch.float64) + torch.tensor([-1.0, 1.0])
    found = 0.0
    for n in range(39):
        blank, token = arc_scores(logits[:, :, : n + 1], torch.zeros(1, n, dtype=torch.int64), 1)
        found += math.exp(-float(rnnt_losses(blank, token, lengths(2), lengths(n))))
    assert found == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("omega", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(omega: float) -> None:
    logits, labels, duration = drawn(3, 5, 4, V=4)
    frames, tokens = lengths(5, 3, 4), lengths(3, 1, 0)

    def tdt(logits: Tensor, duration: Tensor) -> Tensor:
        blank, token = arc_scores(logits, labels % 3, 3, sigma=0.02)
        return tdt_losses(blank, token, duration.log_softmax(-1), DURATIONS, frames, tokens, omega)

    def rnnt(logits: Tensor) -> Tensor:
        return rnnt_losses(*arc_scores(logits, labels % 3, 3), frames, tokens)

    logits.requires_grad_()
    duration.requires_grad_()
    assert torch.autograd.gradcheck(tdt, (logits, duration))
    assert torch.autograd.gradcheck(rnnt, (logits,))


def test_values_and_gradients_are_those_of_the_library_s_own_slow_loss() -> None:
    logits, labels, duration = drawn(3, 9, 5)
    frames, tokens = lengths(9, 7, 4), lengths(4, 2, 0)
    both = []
    for whose in ("ours", "theirs"):
        x, d = logits.float().requires_grad_(), duration.float().requires_grad_()
        if whose == "ours":
            loss = tdt_losses(*arc_scores(x, labels, 6, 0.05), d.log_softmax(-1), DURATIONS, frames, tokens)
        else:
            loss = tdt_loss(x, d, labels, frames, tokens, 6, list(DURATIONS), sigma=0.05, reduction="none")
        loss.sum().backward()
        both.append((loss.detach(), x.grad, d.grad))
    for ours, theirs in zip(*both, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_utterance_s_loss_and_gradient_do_not_know_their_neighbours_nor_their_padding() -> None:
    logits, labels, duration = drawn(3, 9, 6)
    frames, tokens = lengths(9, 4, 7), lengths(5, 2, 3)
    x = logits.clone().requires_grad_()
    together = tdt_losses(*arc_scores(x, labels, 6), duration, DURATIONS, frames, tokens)
    together.sum().backward()
    for b in range(3):
        T, U = int(frames[b]), int(tokens[b]) + 1
        y = logits[b : b + 1, :T, :U].clone().requires_grad_()
        alone = tdt_losses(
            *arc_scores(y, labels[b : b + 1, : U - 1], 6),
            duration[b : b + 1, :T, :U],
            DURATIONS,
            frames[b : b + 1],
            tokens[b : b + 1],
        )
        alone.sum().backward()
        assert alone.item() == pytest.approx(together[b].item(), abs=1e-12)
        assert torch.allclose(x.grad[b, :T, :U], y.grad[0], atol=1e-12)
        assert x.grad[b, T:].abs().max() == 0 if T < 9 else True
        assert x.grad[b, :, U:].abs().max() == 0 if U < 6 else True


def test_a_transcript_that_does_not_fit_costs_nothing_and_moves_nothing() -> None:
    logits, labels, duration = drawn(2, 5, 6, D=3)
    x = logits.requires_grad_()
    loss = tdt_losses(*arc_scores(x, labels, 6), duration, (1, 2, 3), lengths(5, 5), lengths(5, 3))
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] > 0
    assert x.grad[0].abs().max() == 0
    assert x.grad[1].abs().max() > 0
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("durations", [None, DURATIONS, (1, 2), (2, 4), (0, 2), (1,)])
def test_what_fits_is_known_before_the_step(durations) -> None:
    for T, L in itertools.product(range(1, 8), range(5)):
        scores = torch.full((1, T, L + 1), -9.0, dtype=torch.float64)  # so small that all paths' sum is below one
        if durations is None:
            loss = rnnt_losses(scores, scores, lengths(T), lengths(L))
        else:
            duration = scores[..., None].expand(1, T, L + 1, len(durations))
            loss = tdt_losses(scores, scores, duration, durations, lengths(T), lengths(L))
        assert has_path(T, L, durations) == bool(loss != 0), (T, L)
    assert not has_path(0, 0, durations)


def test_half_precision_logits_are_summed_in_single() -> None:
    logits, labels, _ = drawn(2, 6, 4, dtype=torch.float32)
    blank, token = arc_scores(logits.bfloat16(), labels, 6)
    assert blank.dtype == torch.float32
    exact = rnnt_losses(*arc_scores(logits.bfloat16().float(), labels, 6), lengths(6, 6), lengths(3, 2))
    assert torch.equal(rnnt_losses(blank, token, lengths(6, 6), lengths(3, 2)), exact)


def test_the_lattice_asks_the_device_nothing() -> None:
    logits, labels, duration = drawn(2, 6, 4, dtype=torch.float32)
    x = logits.requires_grad_()
    frames, tokens = lengths(6, 4), lengths(3, 2)
    with Waits() as waits:
        loss = tdt_losses(*arc_scores(x, labels, 6, 0.02), duration, DURATIONS, frames, tokens, 0.1)
        loss.sum().backward()
    assert x.grad is not None
    assert not waits.found
