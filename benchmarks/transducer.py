"""TDT loss, forward and backward: ours against transformers' own, in turns, on one thread.

usage: transducer.py [B T L V]
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from transformers.loss.loss_tdt import tdt_loss

from trainer.losses.transducer import arc_scores, tdt_losses

DURATIONS = [0, 1, 2, 3, 4]
TURNS = 7


def main(argv: list[str]) -> None:
    B, T, L, V = (int(a) for a in argv) if argv else (4, 63, 40, 1025)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logits = torch.randn(B, T, L + 1, V + len(DURATIONS), requires_grad=True)
    labels = torch.randint(0, V - 1, (B, L))
    frames, tokens = torch.full((B,), T), torch.full((B,), L)

    def ours() -> Tensor:
        scores = arc_scores(logits[..., :V], labels, V - 1)
        return tdt_losses(*scores, logits[..., V:].log_softmax(-1), DURATIONS, frames, tokens)

    def theirs() -> Tensor:
        return tdt_loss(logits[..., :V], logits[..., V:], labels, frames, tokens, V - 1, DURATIONS, reduction="none")

    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    gradients: dict[str, Tensor] = {}
    for _ in range(TURNS):
        for name, loss in (("ours", ours), ("theirs", theirs)):
            found[name].append(timed(loss))
            assert logits.grad is not None
            gradients[name] = logits.grad
            logits.grad = None
    exact = logits.detach().double().requires_grad_()
    scores = arc_scores(exact[..., :V], labels, V - 1)
    tdt_losses(*scores, exact[..., V:].log_softmax(-1), DURATIONS, frames, tokens).sum().backward()
    assert exact.grad is not None
    wrong = {name: float((g.double() - exact.grad).abs().max()) for name, g in gradients.items()}
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread, B {B} T {T} L {L} V {V}")
    for name, seconds in found.items():
        low, high = min(seconds), max(seconds)
        print(
            f"{name:<8} median {statistics.median(seconds):.3f} s  ({low:.3f}–{high:.3f}), {TURNS} turns; "
            f"gradient within {wrong[name]:.0e} of float64's"
        )
    ratios = sorted(t / o for o, t in zip(found["ours"], found["theirs"], strict=True))
    print(f"theirs / ours: median {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})")


def timed(loss: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    loss().sum().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
