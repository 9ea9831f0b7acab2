"""A source's rules of what is good enough, applied to its manifest by what an audit measured.

An utterance goes by the first rule whose `where` fits it; one that no rule is for is kept.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.audited import Audit, Places, read_audit
from trainer.data.buckets import codes_of, has_one_of
from trainer.data.manifest import Manifest
from trainer.errors import BadData
from trainer.recipe.keep import Keep
from trainer.recipe.source import Source

log = logging.getLogger(__name__)

LIMITS = {  # of a rule → the measure, and whether it may not lie above
    "max_wer": ("wer", True),
    "max_cer": ("cer", True),
    "min_align": ("align", False),
    "min_chars_per_s": ("chars_per_s", False),
    "max_chars_per_s": ("chars_per_s", True),
    "max_chars": ("chars", True),
    "max_silence": ("silence", True),
    "max_clipping": ("clipping", True),
    "min_snr_db": ("snr_db", False),
}
COMES_OF = {  # what an audit must have been given for a measure
    "wer": "--rows, --model or --run",
    "cer": "--rows, --model or --run",
    "align": "--align",
}


@dataclass(frozen=True)
class RuleTold:
    """What one rule did. An utterance that fails several limits is counted under each of them."""

    where: Mapping[str, str | list[str]]
    utterances: int  # that it was for
    left_out: int
    left_out_h: float
    by_limit: Mapping[str, int]


@dataclass(frozen=True)
class KeepTold:
    """What the rules of a source left, and by whose word."""

    audit: str
    audit_sha256: str
    rules: Sequence[RuleTold]


def kept(manifest: Manifest, source: Source, root: Path) -> tuple[np.ndarray, KeepTold]:
    """Which positions are good enough: bool (N,), and what each rule left out.

    Raises BadData where the audit is absent, of another version of the manifest, lacks one of its ids, or lacks what
    a rule goes by.
    """
    assert source.audit is not None, "the recipe sees to that"
    assert source.manifest is not None, "the recipe sees to that"
    rules = source.keep
    measures = sorted({LIMITS[limit][0] for rule in rules for limit in limits_of(rule)})
    flags = sorted({flag for rule in rules for flag in rule.drop})
    audit = read_audit(root / source.audit, source.manifest, measures, flags)
    place = _places(manifest, audit, source.manifest)
    _check_measured(audit, rules, source.manifest)
    hours = manifest.column("duration_s") / 3600
    good, free, told = np.ones(len(manifest), bool), np.ones(len(manifest), bool), []
    fields = {name: codes_of(manifest, name) for name in {name for rule in rules for name in rule.where}}  # once each
    for rule in rules:
        mine = free.copy()
        for name, wanted in rule.where.items():
            mine &= has_one_of(*fields[name], {wanted} if isinstance(wanted, str) else set(wanted))
        free &= ~mine
        at = np.flatnonzero(mine)
        among = place[at]
        measures_n = {m: values[among] for m, values in audit.measures.items()}
        failed = failures(rule, measures_n, {f: is_set[among] for f, is_set in audit.flags.items()})
        out = np.logical_or.reduce([np.zeros(len(at), bool), *failed.values()])
        good[at[out]] = False
        counts = {limit: int(f.sum()) for limit, f in failed.items()}
        told.append(RuleTold(rule.where, len(at), int(out.sum()), float(hours[at[out]].sum()), counts))
    for n, rule_told in enumerate(told, start=1):
        log.info("%s: rule %d, %s", source.manifest, n, sentence(rule_told))
    return good, KeepTold(source.audit, audit.sha256, told)


def failures(rule: Keep, measures: Mapping[str, np.ndarray], flags: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of n utterances, which fail each limit: bool (n,) each. What was not measured (NaN) holds no limit."""
    failed = {}
    for limit in limits_of(rule):
        measure, is_highest = LIMITS[limit]
        values, bound = measures[measure], getattr(rule, limit)
        with np.errstate(invalid="ignore"):
            failed[limit] = ~(values <= bound if is_highest else values >= bound)
    if rule.either:
        failed["max_wer or max_cer"] = failed.pop("max_wer") & failed.pop("max_cer")
    return failed | {f"drop {flag}": flags[flag] for flag in rule.drop}


def limits_of(rule: Keep) -> list[str]:
    """Which limits a rule sets."""
    return [limit for limit in LIMITS if getattr(rule, limit) is not None]


def with_audit(manifest: Manifest, audit_sha256: str) -> str:
    """The digest of a manifest whose rows an audit had a say in: a resume with another audit is another training."""
    return hashlib.sha256(f"{manifest.sha256} kept by {audit_sha256}".encode()).hexdigest()


def sentence(told: RuleTold) -> str:
    """`for age_bucket 3-4: 12 of 100 left out, 0.2 h (max_wer 10, drop silent 3)`."""
    places = [f"{k} {v if isinstance(v, str) else ', '.join(v)}" for k, v in told.where.items()]
    counts = ", ".join(f"{k} {n}" for k, n in told.by_limit.items() if n)
    for_whom = f"for {' and '.join(places)}" if places else "for all that is left"
    return f"{for_whom}: {told.left_out} of {told.utterances} left out, {told.left_out_h:.2f} h" + (
        f" ({counts})" if counts else ""
    )


def _places(manifest: Manifest, audit: Audit, name: str) -> np.ndarray:
    """Where in the audit each position stands."""
    about = str(audit.facts["provenance"].get("manifest_sha256", ""))
    if hashlib.sha256(about.encode()).hexdigest() != manifest.sha256:  # a manifest's is the hash of its files' hashes
        raise BadData(f"{audit.path} is about another version of {name}", f"trainer audit {name} looks at this one")
    place = Places(audit.keys).of(manifest.column("key"))
    lacking = np.flatnonzero(place < 0)
    if len(lacking):
        raise BadData(
            f"{audit.path} lacks {len(lacking)} of {len(manifest)} ids of {name}, "
            f"{manifest[int(lacking[0])].id} among them",
            f"trainer audit {name} with the same data.fields as here (--set data.fields=…) looks at all",
        )
    return place


def _check_measured(audit: Audit, rules: Sequence[Keep], name: str) -> None:
    """Every mistake at once."""
    wrong, ask = [], []
    for n, rule in enumerate(rules, start=1):
        for limit in limits_of(rule):
            measure = LIMITS[limit][0]
            if not np.isfinite(audit.measures[measure]).any():
                wrong.append(f"rule {n} goes by {limit}, and {audit.path} has no {measure}")
                ask.append(COMES_OF.get(measure, ""))
        asked = audit.facts["provenance"].get("flags_looked_for")
        for flag in rule.drop:
            if asked is not None and flag not in asked:
                wrong.append(f"rule {n} drops {flag}, and {audit.path} did not look for it")
                ask.append(FLAG_COMES_OF.get(flag, ""))
    if wrong:
        how = " and ".join(dict.fromkeys(a for a in ask if a))
        raise BadData("; ".join(wrong), f"trainer audit {name}" + (f", with {how}" if how else ""))


FLAG_COMES_OF = {"disagrees": "--rows, --model or --run", "in_other_set": "--against"}
