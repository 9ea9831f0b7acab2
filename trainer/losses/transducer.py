"""Transducer losses: RNN-T (Graves, 2012) and TDT (Xu et al., 2023), one lattice for both, no wait for the device.

A path through the lattice starts at (frame 0, no token), and each arc emits either the next token or a blank and goes
some frames on: RNN-T's tokens go none and its blanks one; TDT's arcs have a duration with a probability of its own. A
path ends with a blank that lands just behind the last frame, all tokens said. The loss is minus the log of their sum.

Cost: nodes (t, u) of one anti-diagonal n = t + u don't depend on each other, so forward and backward are each a loop
over T + U diagonals of a few kernels over (B, U). The gradient is analytic (forward-backward), so what is kept is the
arcs' scores and the forward variables: (A + 1)·B·(T + U)·U numbers, A arcs a node. The joint network's B·T·U·V logits
are the caller's: see `arc_scores` for what is needed of them. All in float32, or in float64 where the scores are.

B batch · T frames · L tokens · U token positions (L + 1) · V vocabulary · D durations · A arcs · N diagonals
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NEVER = float("-inf")


def rnnt_losses(blank_BTU: Tensor, token_BTU: Tensor, frames_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Minus log-likelihoods (B,), a sum over each utterance's paths; 0 without a gradient where there is no path.

    `blank_BTU` and `token_BTU` are log-probabilities of the blank and of the next token; the last token column is not
    read. `frames_B` and `tokens_B` are lengths, int64, on the scores' device.
    """
    return _paths(blank_BTU[..., None], token_BTU[..., None], (1,), (0,), frames_B, tokens_B)


def tdt_losses(
    blank_BTU: Tensor,
    token_BTU: Tensor,
    duration_BTUD: Tensor,
    durations: Sequence[int],
    frames_B: Tensor,
    tokens_B: Tensor,
    omega: float = 0.0,
) -> Tensor:
    """As `rnnt_losses`, with log-probabilities of each of `durations` (frames).

    `omega` mixes in that share of the RNN-T loss over the same tokens, which keeps them usable without their durations
    (the paper draws one of the two a batch; this is its mean).
    """
    going = [i for i, d in enumerate(durations) if d > 0]  # a blank that stays would never end
    blanks_BTUA = torch.stack([blank_BTU + duration_BTUD[..., i] for i in going], -1)
    tokens_BTUA = token_BTU[..., None] + duration_BTUD
    losses_B = _paths(blanks_BTUA, tokens_BTUA, [durations[i] for i in going], durations, frames_B, tokens_B)
    if omega:
        losses_B = (1 - omega) * losses_B + omega * rnnt_losses(blank_BTU, token_BTU, frames_B, tokens_B)
    return losses_B


def arc_scores(logits_BTUV: Tensor, labels_BL: Tensor, blank: int, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
    """(blank_BTU, token_BTU): the two log-probabilities a node needs of its V logits, in float32 at least.

    `sigma` is subtracted from both (TDT's under-normalisation: it favours paths of fewer, longer arcs). Labels beyond
    an utterance's own may be any valid id. The last token column is -inf.
    """
    whole = logits_BTUV if logits_BTUV.dtype == torch.float64 else logits_BTUV.float()
    norm_BTU = whole.logsumexp(-1) + sigma
    B, T, U, _ = whole.shape
    index_BTL1 = labels_BL[:, None, :, None].expand(B, T, U - 1, 1)
    said_BTL = whole[:, :, : U - 1].gather(-1, index_BTL1).squeeze(-1)
    token_BTU = torch.nn.functional.pad(said_BTL - norm_BTU[:, :, : U - 1], (0, 1), value=NEVER)
    return whole[..., blank] - norm_BTU, token_BTU


def has_path(n_frames: int, n_tokens: int, durations: Sequence[int] | None = None) -> bool:
    """Whether so many tokens can be said in so many frames; no durations: RNN-T. For the host, before the step."""
    if durations is None:
        return n_frames >= 1
    frames = (1 << (n_frames + 1)) - 1  # bit t: frame t can be reached
    reached = 1
    for _ in range(n_tokens):
        reached = _or(reached << d for d in durations) & frames
    going = [d for d in durations if d > 0]
    seen = 0
    while reached & ~seen:  # blanks, one at least
        seen |= reached
        reached = _or(seen << d for d in going) & frames
    return bool(reached >> n_frames & 1)


def _or(sets: Any) -> int:
    whole = 0
    for s in sets:
        whole |= s
    return whole


def _paths(
    blanks_BTUA: Tensor,
    tokens_BTUA: Tensor,
    blank_frames: Sequence[int],
    token_frames: Sequence[int],
    frames_B: Tensor,
    tokens_B: Tensor,
) -> Tensor:
    """Arcs that leave an utterance's own lattice are closed; what is left goes through forward-backward."""
    _, T, U, _ = blanks_BTUA.shape
    t = torch.arange(T, device=blanks_BTUA.device)[:, None]
    u = torch.arange(U, device=blanks_BTUA.device)
    n_frames, n_tokens = frames_B[:, None, None], tokens_B[:, None, None]
    ends = u == n_tokens
    open_blank = [(u <= n_tokens) & ((t + d < n_frames) | ((t + d == n_frames) & ends)) for d in blank_frames]
    open_token = [(u < n_tokens) & (t + d < n_frames) for d in token_frames]
    losses_B: Tensor = _ForwardBackward.apply(
        blanks_BTUA.masked_fill(~torch.stack(open_blank, -1), NEVER),
        tokens_BTUA.masked_fill(~torch.stack(open_token, -1), NEVER),
        tuple(blank_frames),
        tuple(token_frames),
        frames_B,
        tokens_B,
    )
    return losses_B


class _ForwardBackward(torch.autograd.Function):
    """Minus the log of all paths' sum, (B,), and its gradient: each arc's share of all paths."""

    @staticmethod
    def forward(
        ctx: Any,
        blanks_BTUA: Tensor,
        tokens_BTUA: Tensor,
        blank_frames: tuple[int, ...],
        token_frames: tuple[int, ...],
        frames_B: Tensor,
        tokens_B: Tensor,
    ) -> Tensor:
        blanks_NBUA, tokens_NBUA = _skewed(blanks_BTUA), _skewed(tokens_BTUA)
        alpha_NBU = _alphas(blanks_NBUA, tokens_NBUA, blank_frames, token_frames)
        at_end_1BU = (frames_B + tokens_B)[None, :, None].expand(1, -1, alpha_NBU.shape[2])
        end_BU = alpha_NBU.gather(0, at_end_1BU).squeeze(0)
        total_B = end_BU.gather(1, tokens_B[:, None]).squeeze(1)
        ctx.save_for_backward(blanks_NBUA, tokens_NBUA, alpha_NBU, total_B, frames_B, tokens_B)
        ctx.how = (blank_frames, token_frames, blanks_BTUA.shape[1])
        return torch.where(torch.isfinite(total_B), -total_B, torch.zeros_like(total_B))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        blanks_NBUA, tokens_NBUA, alpha_NBU, total_B, frames_B, tokens_B = ctx.saved_tensors
        blank_frames, token_frames, T = ctx.how
        ends = (frames_B + tokens_B, tokens_B)
        beta_NBU = _betas(blanks_NBUA, tokens_NBUA, blank_frames, token_frames, ends)
        from_NBU = alpha_NBU - torch.where(torch.isfinite(total_B), total_B, torch.zeros_like(total_B))[:, None]
        N = len(alpha_NBU)

        def shares(arcs_NBUA: Tensor, frames: tuple[int, ...], step: int) -> Tensor:
            found = torch.zeros_like(arcs_NBUA)
            for i, d in enumerate(frames):
                n = d + step  # diagonals this arc goes on
                if n < N:
                    to_NBU = beta_NBU[n:] if not step else _left(beta_NBU[n:])
                    found[: N - n, ..., i] = (from_NBU[: N - n] + arcs_NBUA[: N - n, ..., i] + to_NBU).exp()
            return found * -gradients[0][:, None, None]

        blanks = _unskewed(shares(blanks_NBUA, blank_frames, 0), T)
        tokens = _unskewed(shares(tokens_NBUA, token_frames, 1), T)
        return blanks, tokens, None, None, None, None


def _alphas(
    blanks_NBUA: Tensor, tokens_NBUA: Tensor, blank_frames: Sequence[int], token_frames: Sequence[int]
) -> Tensor:
    """Log of all paths' sum from the start to each node, diagonal by diagonal."""
    N, B, U, _ = blanks_NBUA.shape
    alpha_NBU = blanks_NBUA.new_full((N, B, U), NEVER)
    alpha_NBU[0, :, 0] = 0.0
    for n in range(1, N):
        arrive = [alpha_NBU[n - d] + blanks_NBUA[n - d, ..., i] for i, d in enumerate(blank_frames) if d <= n]
        for i, d in enumerate(token_frames):
            if d + 1 <= n:
                arrive.append(_right(alpha_NBU[n - d - 1] + tokens_NBUA[n - d - 1, ..., i]))
        if arrive:
            alpha_NBU[n] = torch.stack(arrive).logsumexp(0)
    return alpha_NBU


def _betas(
    blanks_NBUA: Tensor,
    tokens_NBUA: Tensor,
    blank_frames: Sequence[int],
    token_frames: Sequence[int],
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """Log of all paths' sum from each node to its utterance's end: (diagonal, tokens) (B,), (B,)."""
    N, _, U, _ = blanks_NBUA.shape
    n_N11 = torch.arange(N, device=blanks_NBUA.device)[:, None, None]
    u_U = torch.arange(U, device=blanks_NBUA.device)
    is_end = (n_N11 == ends[0][:, None]) & (u_U == ends[1][:, None])
    beta_NBU = torch.where(is_end, 0.0, NEVER).to(blanks_NBUA.dtype)
    for n in range(N - 2, -1, -1):
        leave = [beta_NBU[n]]
        leave += [beta_NBU[n + d] + blanks_NBUA[n, ..., i] for i, d in enumerate(blank_frames) if n + d < N]
        for i, d in enumerate(token_frames):
            if n + d + 1 < N:
                leave.append(_left(beta_NBU[n + d + 1]) + tokens_NBUA[n, ..., i])
        beta_NBU[n] = torch.stack(leave).logsumexp(0)
    return beta_NBU


def _right(x: Tensor) -> Tensor:
    """Seen from the next token: column u holds what column u - 1 held."""
    return torch.nn.functional.pad(x[..., :-1], (1, 0), value=NEVER)


def _left(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x[..., 1:], (0, 1), value=NEVER)


def _skewed(arcs_BTUA: Tensor) -> Tensor:
    """(B, T, U, A) → (N, B, U, A): row n holds the nodes with t + u = n; the end's own diagonal has no arcs."""
    B, T, U, A = arcs_BTUA.shape
    whole = arcs_BTUA.new_full((T + U, B, U, A), NEVER)
    for u in range(U):
        whole[u : u + T, :, u] = arcs_BTUA[:, :, u].transpose(0, 1)
    return whole


def _unskewed(arcs_NBUA: Tensor, T: int) -> Tensor:
    columns = [arcs_NBUA[u : u + T, :, u] for u in range(arcs_NBUA.shape[2])]
    return torch.stack(columns, dim=2).transpose(0, 1)
