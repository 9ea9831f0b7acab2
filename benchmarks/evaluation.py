"""Decoding: the trainer's batched `predict` against transformers' speech recognition pipeline, greedy, one model.

python benchmarks/evaluation.py                                   a small Whisper is trained first, for a minute or so
python benchmarks/evaluation.py --model EXPORT --manifest M.jsonl a model of yours in the Hub's layout
python benchmarks/evaluation.py --utterances 10000 --rounds 1     as many of three seconds each; see the limits below
python benchmarks/evaluation.py --quick                           a smoke test; its figures mean nothing

Said are the time on the wall and RTFx (seconds of audio decoded in one), how many utterances the two write differently
in the same full window (the goal is none, in fp32), and what decoding at an utterance's own length changes in the word
error rate. `--full-utterances` and `--pipeline-utterances` let the slow sides decode only the first so many: their
lines say so and are of these alone; ratios are then of the time that a second of audio takes.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.corpus import clips_of_one_length, sentences
from lib.models import Shape, make_whisper
from lib.timing import answer, own_place, ratio, sides, spread, timed, where

SHAPE, QUICK = Shape(128, 1, 4, 0), Shape(16, 1, 2, 0, mels=16)
MAX_TOKENS = 48
CLIP_S = 3.0
Decode = Callable[[int | None], list[dict[str, Any]]]  # the first so many utterances; None: all
NAMES = ["ours, own length", "ours, full window", "pipeline"]


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    if args.side:
        answer(_side(args))
        return
    _say(where(args.threads, precision=args.precision))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if args.model is None:
            args.model, args.manifest = _trained(args, place)
        _compare(args, place)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Whisper in the Hub's layout; one is trained by default")
    parser.add_argument("--manifest", type=Path, help="what is decoded, its audio beside it; needs --model")
    parser.add_argument(
        "--utterances", type=int, help="decode so many of three seconds; 200 of one to four words without"
    )
    parser.add_argument("--full-utterances", type=int, metavar="N", help="ours in the full window decodes the first N")
    parser.add_argument("--pipeline-utterances", type=int, metavar="N", help="the pipeline decodes the first N")
    parser.add_argument("--rounds", type=int, default=7, help="of each side, in turn; 7")
    parser.add_argument("--batch", type=int, default=16, help="utterances at once in the full window; 16")
    parser.add_argument("--updates", type=int, default=450, help="of the model that is trained; 450")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--quick", action="store_true", help="a model that has learnt nothing, two rounds")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.model is None) != (args.manifest is None):
        parser.error("--model and --manifest come together")
    if args.manifest is not None and args.utterances is not None and not args.side:
        parser.error("--utterances makes utterances, --manifest names them")
    if args.quick:
        args.rounds, args.updates = min(2, args.rounds), 4
    return args


def _limits(args: argparse.Namespace) -> dict[str, int | None]:
    """How many utterances each side decodes; None: all."""
    return dict(zip(NAMES, (None, args.full_utterances, args.pipeline_utterances), strict=True))


# ---- what is measured


def _trained(args: argparse.Namespace, place: Path) -> tuple[Path, Path]:
    """A model that can say sixteen words, mostly, and utterances for it."""
    os.environ.update(own_place(place))
    from lib.ours import Ours, recipe_of

    make_whisper(place / "fresh", QUICK if args.quick else SHAPE)
    n_train, n_test = (64, 12) if args.quick else (4000, 200)
    of_clips = args.utterances is not None  # it hears in training what it will be asked
    train = (
        clips_of_one_length(place, n_train, CLIP_S, 0, "train") if of_clips else sentences(place, n_train, 0, "train")
    )
    test = clips_of_one_length(place, args.utterances, CLIP_S, 1, "test") if args.utterances else None
    test = test or sentences(place, n_test, 1, "test")
    sentences(place, 1, 2, "dev")
    loop = {"steps": args.updates, "step_utts": 24, "threads": args.threads, "precision": "fp32"}
    training = Ours(recipe_of(place / "fresh", train, loop=loop, optim={"lr": 3e-3})).set_up()
    took = timed(training.run)
    training.task.export(training.parts.module, place / "model")
    _say(f"trained for this: {args.updates} steps of 24 in {took.wall_s:.0f} s, {SHAPE if not args.quick else QUICK}")
    return place / "model", test


def _compare(args: argparse.Namespace, place: Path) -> None:
    from lib.words import paired, wer

    argv = ["--model", str(args.model), "--manifest", str(args.manifest), "--batch", str(args.batch)]
    argv += ["--threads", str(args.threads), "--precision", args.precision]
    for name, n in (("full", args.full_utterances), ("pipeline", args.pipeline_utterances)):
        argv += [f"--{name}-utterances", str(n)] if n is not None else []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    with sides(__file__, NAMES, place, argv) as asked:
        for side in asked:
            side.ask("warm")
        for _ in range(args.rounds):
            for side in asked:
                found[side.name].append(side.ask("round"))
        rows = {side.name: side.ask("rows")["rows"] for side in asked}
    own, full, pipeline = NAMES
    audio_s = {name: sum(r["duration_s"] for r in rows[own][: len(some)]) for name, some in rows.items()}
    _say(
        f"{len(rows[own])} utterances, {audio_s[own]:.0f} s, {args.batch} at once, {MAX_TOKENS} tokens at most; "
        f"greedy; rounds: {args.rounds}"
    )
    _say(f"{'':18} {'utts':>6} {'wall s':>24} {'RTFx':>24} {'CPU s':>24} {'peak MB':>8} {'WER':>8}")
    for name, rounds in found.items():
        wall, speed = spread([r["wall_s"] for r in rounds], 2), spread([audio_s[name] / r["wall_s"] for r in rounds], 1)
        cpu, peak = spread([r["cpu_s"] for r in rounds], 2), max(r["peak_mb"] for r in rounds)
        whole = f"{len(rows[name]):6} {wall:>24} {speed:>24} {cpu:>24} {peak:8.0f} {wer(rows[name]):8.2%}"
        _say(f"{name:18} {whole}")
    for name, some in rows.items():
        if len(some) < len(rows[own]):
            rest = len(rows[own]) - len(some)
            _say(f"{name}: of the first {len(some)} utterances alone; it was not asked for the other {rest}")
    walls = {name: [r["wall_s"] / audio_s[name] for r in rounds] for name, rounds in found.items()}  # by audio second
    _say(ratio("pipeline / ours, both in the full window", walls[pipeline], walls[full]))
    _say(ratio("pipeline / ours at its own length", walls[pipeline], walls[own]))
    said = {name: {r["id"]: r["text"] for r in rs} for name, rs in rows.items()}
    both = [i for i in said[full] if i in said[pipeline]]
    differ = [i for i in both if said[pipeline][i] != said[full][i]]
    _say(f"written differently in the same full window: {len(differ)} of {len(both)} {differ[:5] or ''}".rstrip())
    for i in differ[:5]:
        _say(f"  {i}: ours {said[full][i]!r}, pipeline {said[pipeline][i]!r}")
    mine = [r for r in rows[own] if r["id"] in said[pipeline]]
    low, high = paired(mine, rows[pipeline])
    points = 100 * (wer(mine) - wer(rows[pipeline]))
    words = statistics.mean(len(r["reference"].split()) for r in mine)
    _say(f"ours at its own length − pipeline: {points:+.2f} points, 95 % {100 * low:+.2f} to {100 * high:+.2f}", end="")
    _say(f" (paired bootstrap over {len(mine)} utterances of {words:.1f} words)")


# ---- a side, in its own process


def _side(args: argparse.Namespace) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    import torch

    torch.set_num_threads(args.threads)
    decode = _pipeline(args) if args.side == NAMES[2] else _ours(args, "own" if args.side == NAMES[0] else "full")
    n = _limits(args)[args.side]
    last: list[dict[str, Any]] = []

    def one_round() -> dict[str, float]:
        def work() -> None:
            last[:] = decode(n)

        took = timed(work)
        return {"wall_s": took.wall_s, "cpu_s": took.cpu_s}

    def warm() -> dict[str, float]:
        decode(args.batch)
        return {}

    return {"warm": warm, "round": one_round, "rows": lambda: {"rows": last}}


def _ours(args: argparse.Namespace, window: str) -> Decode:
    """As `trainer evaluate` decodes: a batch holds so many padded seconds, whatever the number of its utterances."""
    from lib.ours import Decoder, Decoding

    window_s = json.loads((args.model / "config.json").read_text())["max_source_positions"] / 50
    how = Decoding(MAX_TOKENS, float(args.batch * window_s), args.precision, args.threads)
    return Decoder(args.model, args.manifest, window, how).rows


def _pipeline(args: argparse.Namespace) -> Decode:
    """As a person would call it, told to be greedy and when to stop. Sound is read as our side reads it."""
    import torch
    import transformers
    from lib.ours import examples_of

    from trainer.data.audio import RATE, read_audio

    transformers.logging.set_verbosity_error()
    examples = examples_of(args.model, args.manifest)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    model = transformers.WhisperForConditionalGeneration.from_pretrained(args.model, dtype=dtype)
    processor = transformers.WhisperProcessor.from_pretrained(args.model)
    pipe = transformers.pipeline(
        "automatic-speech-recognition",
        model=model,
        feature_extractor=processor.feature_extractor,
        tokenizer=processor.tokenizer,
        batch_size=args.batch,
        device="cpu",
    )

    def heard(some: Sequence[Any]) -> Iterator[dict[str, Any]]:
        for e in some:
            yield {"raw": read_audio(e.audio, e.start_s, e.duration_s), "sampling_rate": RATE}

    def decode(n: int | None) -> list[dict[str, Any]]:
        some = examples[:n]
        texts = pipe(heard(some), generate_kwargs={"num_beams": 1, "max_new_tokens": MAX_TOKENS})
        pairs = zip(some, texts, strict=True)
        return [{"id": e.id, "reference": e.text, "text": t["text"].strip()} for e, t in pairs]

    return decode


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
