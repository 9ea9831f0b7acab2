"""`trainer audit`: what is wrong with data, an utterance a line, and what rules would leave of it."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.recipe.data import Data


def add(commands: Any) -> None:
    """Its parser."""
    p = commands.add_parser(
        "audit", help="look at every utterance of manifests: duplicates, silence, clipping, odd text, agreement, leaks"
    )
    p.add_argument("inputs", nargs="+", metavar="MANIFEST", help="manifests (.jsonl), or one experiment file (.yaml)")
    first = p.add_mutually_exclusive_group()
    first.add_argument("--rows", type=Path, help="what a first model heard: rows of `trainer evaluate` or `predict`")
    first.add_argument("--run", type=Path, help="let this run's best model listen first")
    first.add_argument("--model", type=Path, help="let this model listen first")
    p.add_argument("--align", type=Path, metavar="CTC_MODEL", help="score each transcript in its sound with this model")
    p.add_argument("--out", type=Path, help="of one manifest; NAME.audit.jsonl beside it by default")
    p.add_argument("--against", action="append", default=[], metavar="MANIFEST", help="a set that must not be met: dev")
    p.add_argument("--buckets", metavar="FIELDS", help="age_bucket,source; limits of speed go by the first")
    p.add_argument("--language", default="", help="of rows that name none: en, he, …")
    p.add_argument("--normaliser", help="for agreement; the model's, the experiment's, or basic")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="data.fields=…, data.audio_dirs=…")
    p.add_argument("--json", action="store_true", help="print the summary as data")
    p.set_defaults(command=audit)


def audit(args: argparse.Namespace) -> int:
    """Write NAME.audit.jsonl and NAME.audit.json for each manifest, and say what they hold."""
    from trainer.talk import set_up_logging

    set_up_logging()
    from trainer.aligner import open_aligner
    from trainer.apply import load_trained
    from trainer.audit import listening
    from trainer.audit.agreement import Heard, read_heard
    from trainer.audit.corpus import known_corpus, usual_fields
    from trainer.audit.duplicates import elsewhere
    from trainer.audit.opening import beside, check_out, open_whole
    from trainer.audit.run import Auditor, Witnesses, flags_looked_for, sounds_of, thresholds
    from trainer.audit.summary import summary_lines
    from trainer.errors import BadData
    from trainer.metrics.normalise import normaliser_named

    names, against, data, sets, buckets, usual_normaliser = _asked(args)
    if args.out is not None and len(names) > 1:
        raise BadData(
            f"--out is for one manifest, these are {len(names)}", "leave it out: each has its audit beside it"
        )
    if args.out is not None:
        check_out(args.out, [])
    opened = [open_whole(name, data) for name in names]
    others = [open_whole(name, data) for name in against]
    if args.out is not None:
        heard_paths = [args.rows] if args.rows else [beside(o.path, "heard") for o in opened]
        check_out(args.out, [*(o.path for o in (*opened, *others)), *heard_paths])
    _normaliser(args.normaliser or "basic", normaliser_named)  # mistakes before hours of listening
    aligner = open_aligner(args.align) if args.align else None
    live = Live()
    heard: list[Heard | None] = [None] * len(opened)
    about: dict[str, Any] = {}
    own_normaliser = ""
    if args.rows:
        heard = [read_heard(args.rows)] * len(opened)
        about = {"rows": args.rows.name, "rows_sha256": _hash_of(args.rows)}
    elif args.run or args.model:
        trained = load_trained(argparse.Namespace(run=args.run, model=args.model, set=sets))
        heard, about = [*listening.listen(trained, opened, live)], listening.told(trained)
        own_normaliser = trained.recipe.eval.normaliser
    normaliser = _normaliser(args.normaliser or usual_normaliser or own_normaliser or "basic", normaliser_named)
    met = {o.name: sounds_of(o.manifest, data.workers, o.name, live) for o in others}
    met_elsewhere = elsewhere(met) if others else None
    auditor = Auditor(data.workers, live)
    summaries = []
    for one, mine in zip(opened, heard, strict=True):
        witnesses = Witnesses(mine, aligner, met_elsewhere)
        fields = buckets or usual_fields(one.manifest)
        corpus = known_corpus(one.manifest, fields, args.language, normaliser)
        if aligner is not None:
            aligner.choose_writing([one.manifest[i].text for i in _some(len(one.manifest))])
        provenance = {
            **_versions(),
            "first_model": about,
            "normaliser": normaliser.name,
            "normaliser_sha256": normaliser.sha256,
            "align_model": listening.told(aligner.trained) | {"writing": aligner.writing} if aligner else {},
            "against": {o.name: o.sha256 for o in others},
            "beside": [o.name for o in opened if o is not one],
            "flags_looked_for": flags_looked_for(witnesses),
            "thresholds": thresholds(),
        }
        out = args.out.absolute() if args.out else beside(one.path, "audit")
        summary = auditor.audit(one, corpus, witnesses, out, provenance)
        summaries.append(summary)
        if not args.json:
            print(f"✓ {out}: {summary['utterances']} utterances, {summary['hours']:.2f} h")
            print("\n".join(summary_lines(summary["buckets"])))
            if summary["same_text_and_length"]:
                print(f"  {summary['same_text_and_length']} share text and length with an earlier one")
            for reason, n in summary["quarantined"]["reasons"].items():
                print(f"  {n} × {reason}")
    if args.json:
        print(json.dumps(summaries if len(summaries) > 1 else summaries[0], ensure_ascii=False))
    return 0


class Live:
    """One line that counts, on a terminal; elsewhere a line a minute, so that a log shows that it lives."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, name: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            if done % 50 == 0 or done == total:
                end = "\n" if done == total else ""
                print(f"\r{name}: {done} of {total}", end=end, file=sys.stderr, flush=True)
        elif time.monotonic() - self._last > 60:
            self._last = time.monotonic()
            print(f"{name}: {done} of {total}", file=sys.stderr, flush=True)


def _asked(args: argparse.Namespace) -> "tuple[list[str], list[str], Data, list[str], list[str], str]":
    """Manifests, those they must not meet, how they are read, what is set of the model, buckets and normaliser."""
    from trainer.apply import recipe_of
    from trainer.audit.opening import data_of
    from trainer.errors import BadData
    from trainer.recipe.load import load_recipe

    buckets = [b for b in (args.buckets or "").split(",") if b]
    data, sets = data_of(args.set)
    given = {t.partition("=")[0].removeprefix("train.").removeprefix("data.") for t in args.set if t not in sets}
    if not args.inputs[0].endswith((".yaml", ".yml")):
        if (args.run or args.model) and not given:
            data = recipe_of(argparse.Namespace(run=args.run, model=args.model, set=sets)).data
        return args.inputs, args.against, data, sets, buckets, ""
    if len(args.inputs) > 1:
        raise BadData("an experiment file stands by itself", "name one experiment, or manifests")
    recipe = load_recipe(Path(args.inputs[0]))
    data = recipe.data.model_copy(update={k: getattr(data, k) for k in given})
    names = list(dict.fromkeys(s.manifest for s in recipe.data.sources if s.manifest))
    if not names:
        raise BadData(f"{args.inputs[0]} trains on no manifest", "make manifests with trainer prepare from hf")
    against = list(dict.fromkeys([*args.against, *recipe.data.dev, *recipe.data.test]))
    return names, against, data, sets, buckets or list(recipe.eval.buckets), recipe.eval.normaliser


def _normaliser(name: str, named: Any) -> Any:
    from remote.mistakes import did_you_mean
    from trainer.errors import BadData
    from trainer.metrics.normalise import NORMALISERS

    if name not in NORMALISERS:
        raise BadData(
            f"there is no normaliser {name!r}{did_you_mean(name, list(NORMALISERS))}", "say --normaliser basic"
        )
    return named(name)


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    import soundfile

    from trainer.audit.run import VERSION

    packages = {name: version(name) for name in ("numpy", "soundfile", "soxr", "rapidfuzz")}
    return {"audit_version": VERSION, "versions": {**packages, "libsndfile": soundfile.__libsndfile_version__}}


def _hash_of(path: Path) -> str:
    import hashlib

    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _some(n: int) -> list[int]:
    import numpy as np

    return [int(i) for i in np.linspace(0, n - 1, min(n, 500))]
