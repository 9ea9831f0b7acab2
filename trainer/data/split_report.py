"""What became of children's recordings: `split.json`, and the same as a person reads it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.children import BY, Grouping
from trainer.data.splits import SETS, Split
from trainer.task import Bad

SLACK_S = 0.1  # by how much a row's duration may be wrong before it is counted as a lie
Line = dict[str, Any]


def told_of(
    sets: Mapping[str, Sequence[Line]],
    made: Split,
    grouping: Grouping,
    how: Mapping[str, Any],
    n_lies: int,
    bad: Sequence[Bad],
) -> Line:
    """The mapping, from every set's rows."""
    table = []
    for name in (*SETS, "dev_small", "long"):
        by_age: dict[str, list[Line]] = defaultdict(list)
        for line in sets[name]:
            by_age[line["meta"]["age_bucket"]].append(line)
        for age, lines in [*sorted(by_age.items(), key=lambda x: _age_key(x[0])), ("all", sets[name])]:
            table.append(
                {
                    "set": name,
                    "age": age,
                    "utterances": len(lines),
                    "hours": round(sum(x["duration_s"] for x in lines) / 3600, 4),
                    "children": len({x["speaker"] for x in lines if "speaker" in x}),
                    "share": round(len(lines) / max(1, len(sets[name])), 6),
                }
            )
    return {
        "how": dict(how),
        "split_sha256": made.sha256,
        "table": table,
        "misses": [str(m) for m in made.misses],
        "grouped_by": dict(grouping.by),
        "groups": {name: len(made.groups(name)) for name in SETS},
        "notes": list(grouping.notes),
        "wrong_durations": n_lies,
        "quarantined": dict(Counter(kind_of(b.reason) for b in bad).most_common()),
    }


def lines_of(told: Mapping[str, Any]) -> list[str]:
    """What `split.json` holds, as a person reads it."""
    lines = [f"{'set':<10}{'age':<12}{'utterances':>11}{'hours':>9}{'children':>10}{'share':>9}"]
    for t in told["table"]:
        share = f"{100 * t['share']:.1f} %" if t["age"] != "all" else ""
        lines.append(
            f"{t['set']:<10}{t['age']:<12}{t['utterances']:>11}{t['hours']:>9.2f}{t['children']:>10}{share:>9}"
        )
    lines += [f"! {m}" for m in told["misses"]]
    for kind, n in told["grouped_by"].items():
        lines += [f"{n} utterances are grouped by {BY[kind]}"] if n else []
    lines += [f"! {note}" for note in told["notes"]]
    if told["wrong_durations"]:
        n = told["wrong_durations"]
        lines.append(f"{n} durations were wrong by more than {SLACK_S:g} s: the real ones are used")
    n = sum(told["quarantined"].values())
    lines.append(f"{n} utterances can't be used, see quarantine.jsonl" if n else "every utterance can be used")
    lines += [f"  {k} × {reason}" for reason, k in told["quarantined"].items()]
    return [*lines, f"sha256 {told['sha256']}"]


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row."""
    return reason.partition(":")[0]


def _age_key(age: str) -> tuple[bool, int, str]:
    """3-4 before 12+, unknown last."""
    digits = "".join(c for c in age.partition("-")[0] if c.isdigit())
    return not digits, int(digits or 0), age
