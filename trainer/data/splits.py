"""Train, dev and test out of groups that must not be torn apart, with the same mixture of buckets in each.

A pure function of seed, groups and counts. Groups stand in the order of a hash; dev and test take from its beginning
what fits, bucket by bucket. So a group that is added or grows moves few others: those at the end of what was taken.
What first-fit leaves uneven, a bounded repair exchanges.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.errors import BadData

TOLERANCE = 0.01  # by how much a bucket's share of dev or test may differ from its share of the whole
SIZE_SLACK = 0.1  # by how much of itself dev or test may be smaller or larger than it was asked for
REPAIRS = 200  # exchanges a set, at most
AMONG = 1024  # groups of the hash's order that an exchange looks at
MEMBERS = 64  # of the set that gives one back
ORDERS = 16  # of few groups, where the first leaves a set uneven
FEW = 300
SETS = ("train", "dev", "test")


@dataclass(frozen=True)
class Miss:
    """A bucket whose share of a set is further from that of the whole than it should be, and why."""

    set: str
    bucket: str
    share: float
    whole: float
    reason: str

    def __str__(self) -> str:
        points = 100 * abs(self.share - self.whole)
        side = "more" if self.share > self.whole else "less"
        return f"{self.set} has {points:.1f} points {side} of {self.bucket} than the whole: {self.reason}"


@dataclass(frozen=True)
class Split:
    """Every group on one side. `misses` is empty where the mixture is that of the whole everywhere."""

    of: Mapping[str, str]  # group → train, dev or test
    misses: Sequence[Miss] = field(default_factory=list)

    def groups(self, name: str) -> list[str]:
        return sorted(g for g, s in self.of.items() if s == name)

    @property
    def sha256(self) -> str:
        """Of who is where: the same for the same seed, groups and counts, in whatever order they came."""
        digest = hashlib.sha256()
        for group in sorted(self.of):
            digest.update(f"{group}\0{self.of[group]}\n".encode())
        return digest.hexdigest()


def split(
    groups: Mapping[str, Mapping[str, int]], *, dev: float, test: float, seed: int, tolerance: float = TOLERANCE
) -> Split:
    """Groups (name → utterances a bucket) to train, dev and test; `dev` and `test` are shares of the utterances.

    Every set that is asked for gets at least one group. Raises BadData where there are fewer groups than sets, or the
    shares leave nothing to train on.
    """
    wanted = {name: share for name, share in (("test", test), ("dev", dev)) if share}
    if not (dev >= 0 and test >= 0 and dev + test < 1):
        raise BadData(f"dev ({dev:g}) and test ({test:g}) leave nothing to train on", "give shares, as 0.05")
    filled = {g: c for g, c in groups.items() if sum(c.values())}
    if len(filled) <= len(wanted):
        raise BadData(
            f"{len(filled)} groups of speakers are too few for {len(wanted) + 1} sets: none may stand in two",
            "give more speakers, or --dev 0 or --test 0 where a set comes from elsewhere",
        )
    buckets = sorted({b for c in filled.values() for b, n in c.items() if n})
    of = dict.fromkeys(groups, "train")
    totals = np.array([sum(c.get(b, 0) for c in filled.values()) for b in buckets], float)
    for later, (name, share) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
        left = [g for g in filled if of[g] == "train"]
        chosen = _chosen(filled, left, buckets, share * totals, f"{seed}/{name}", tolerance, len(left) - later)
        of |= dict.fromkeys(chosen, name)
    return Split(of, list(_misses(of, filled, buckets, totals, tolerance)))


def subset(keys: Mapping[str, tuple[str, str]], n: int, seed: int) -> list[str]:
    """`n` utterances (id → its bucket and group) in the buckets' own proportions, of as many groups as there are.

    A bucket's groups give in turn, each in the order of a hash. All of them, where there are not more.
    """
    by_bucket: dict[str, list[str]] = {}
    for id, (bucket, _) in keys.items():
        by_bucket.setdefault(bucket, []).append(id)
    quota = _proportional({b: len(ids) for b, ids in by_bucket.items()}, min(n, len(keys)))
    chosen: list[str] = []
    for bucket, ids in sorted(by_bucket.items()):
        turn: dict[str, int] = {}
        order = []
        for place, id in enumerate(ranked(ids, f"{seed}/small")):
            group = keys[id][1]
            turn[group] = turn.get(group, -1) + 1
            order.append((turn[group], place, id))
        chosen += [id for _, _, id in sorted(order)[: quota[bucket]]]
    return sorted(chosen)


def ranked(names: Iterable[str], seed: str) -> list[str]:
    """In the order of a hash of seed and name."""
    return sorted(names, key=lambda n: (hashlib.sha256(f"{seed}/{n}".encode()).digest(), n))


def _chosen(
    groups: Mapping[str, Mapping[str, int]],
    left: Sequence[str],
    buckets: Sequence[str],
    need_B: np.ndarray,
    seed: str,
    tolerance: float,
    most: int,
) -> list[str]:
    """The groups that make up a set: of one order of the hash, of the best of some where groups are few."""
    best: tuple[float, list[str]] | None = None
    for turn in range(ORDERS if len(left) <= FEW else 1):
        order = ranked(left, f"{seed}/{turn}" if turn else seed)
        aim = _Aim(np.array([[groups[g].get(b, 0) for b in buckets] for g in order], np.int64), need_B, tolerance, most)
        taken = aim.repaired(aim.first_fit())
        wrong = aim.wrong_of(taken)
        if best is None or wrong < best[0] - 1e-12:
            best = wrong, [order[i] for i in taken]
        if aim.is_good(taken):
            break
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class _Aim:
    """What a set should be like, and the groups it may be made of: rows in the hash's order."""

    counts_GB: np.ndarray
    need_B: np.ndarray  # utterances a bucket
    tolerance: float
    most: int  # groups that it may take: each other set needs one

    def first_fit(self) -> list[int]:
        """In the order of the groups, whatever is not too much in any bucket."""
        have = [0.0] * len(self.need_B)
        most = (self.need_B + 0.5).tolist()  # to the nearest utterance
        taken = []
        for i, counts in enumerate(self.counts_GB.tolist()):
            if all(h + c <= m for h, c, m in zip(have, counts, most, strict=True)):
                have = [h + c for h, c in zip(have, counts, strict=True)]
                taken.append(i)
            if len(taken) == self.most:
                break
        return taken or [int(np.argmin(self.counts_GB.sum(1)))]  # each is more than was asked for: the smallest

    def repaired(self, taken: Sequence[int]) -> list[int]:
        """One group in, out, or for another, as long as that makes the set more like what was asked for."""
        inside = dict.fromkeys(taken)
        for _ in range(REPAIRS):
            if self.is_good(list(inside)):
                break
            members = list(inside)[-MEMBERS:]  # the last that came in are the first to go
            others = [i for i in range(len(self.counts_GB)) if i not in inside][:AMONG]
            if len(others) <= 1:
                break
            have_B = self.counts_GB[list(inside)].sum(0)
            best, move = float(self._wrongs(have_B[None])[0]), None
            for out in (None, *members):
                if out is None and len(inside) >= self.most:
                    continue
                base_B = have_B if out is None else have_B - self.counts_GB[out]
                tried = self._wrongs(np.concatenate([base_B[None], base_B + self.counts_GB[others]]))
                at = int(tried.argmin())
                if tried[at] < best - 1e-12:
                    best, move = float(tried[at]), (out, others[at - 1] if at else None)
            if move is None:
                break
            out, into = move
            if out is not None:
                del inside[out]
            if into is not None:
                inside[into] = None
        return sorted(inside)

    def is_good(self, taken: Sequence[int]) -> bool:
        """Every bucket within the tolerance, and the size within its slack."""
        sum_B = self.counts_GB[taken].sum(0)
        shares_B = self.need_B / self.need_B.sum()
        is_even = np.abs(sum_B / sum_B.sum() - shares_B).max() <= self.tolerance
        return bool(is_even and abs(sum_B.sum() / self.need_B.sum() - 1) <= SIZE_SLACK)

    def wrong_of(self, taken: Sequence[int]) -> float:
        return float(self._wrongs(self.counts_GB[taken].sum(0)[None])[0])

    def _wrongs(self, sums_NB: np.ndarray) -> np.ndarray:
        """(N,): points beyond the tolerance and the size's slack first, then how many utterances differ at all."""
        sizes, size = sums_NB.sum(1), self.need_B.sum()
        off_NB = np.abs(sums_NB / np.maximum(sizes, 1)[:, None] - self.need_B / size)
        beyond = np.maximum(off_NB - self.tolerance, 0).sum(1)
        slack = np.maximum(np.abs(sizes / size - 1) - SIZE_SLACK, 0)
        wrong: np.ndarray = beyond + 0.5 * slack + 0.01 * np.abs(sums_NB - self.need_B).sum(1) / size
        wrong[sizes == 0] = np.inf
        return wrong


def _misses(
    of: Mapping[str, str],
    groups: Mapping[str, Mapping[str, int]],
    buckets: Sequence[str],
    totals_B: np.ndarray,
    tolerance: float,
) -> Iterator[Miss]:
    for name in ("dev", "test"):
        mine = [g for g in groups if of[g] == name]
        size = sum(sum(groups[g].values()) for g in mine)
        if not size:
            continue
        for b, total in zip(buckets, totals_B, strict=True):
            share, whole = sum(groups[g].get(b, 0) for g in mine) / size, total / totals_B.sum()
            if abs(share - whole) <= tolerance + 1e-12:
                continue
            holds = [sum(c.values()) for c in groups.values() if c.get(b, 0)]
            if 0.5 / size > tolerance:
                reason = f"one of its {size} utterances is {100 / size:.1f} points"
            else:
                reason = (
                    f"{whole * size:.0f} utterances of it would be right, and it lies in {len(holds)} groups of "
                    f"{min(holds)} to {max(holds)} utterances"
                )
            yield Miss(name, b, float(share), float(whole), reason)


def _proportional(sizes: Mapping[str, int], n: int) -> dict[str, int]:
    """`n` dealt in proportion, to whole numbers: the largest remainders are rounded up."""
    total = max(1, sum(sizes.values()))
    exact = {b: n * size / total for b, size in sizes.items()}
    found = {b: int(x) for b, x in exact.items()}
    for b in sorted(exact, key=lambda b: (found[b] - exact[b], b))[: n - sum(found.values())]:
        found[b] += 1
    return found
