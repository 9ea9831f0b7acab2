"""Decoding: the trainer's batched `predict` against transformers' speech recognition pipeline, greedy, one model.

python benchmarks/evaluation.py                                   a small Whisper is trained first, for a minute or so
python benchmarks/evaluation.py --model EXPORT --manifest M.jsonl a model of yours in the Hub's layout
python benchmarks/evaluation.py --quick                           a smoke test; its figures mean nothing

Said are seconds of audio decoded a second, how many utterances the two write differently in the same full window (the
goal is none, in fp32), and what decoding at an utterance's own length changes in the word error rate.
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

from lib.corpus import sentences
from lib.models import Shape, make_whisper
from lib.timing import answer, own_place, ratio, sides, spread, timed, where

SHAPE, QUICK = Shape(128, 1, 4, 0), Shape(16, 1, 2, 0, mels=16)
MAX_TOKENS = 48
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
    if args.quick:
        args.rounds, args.updates = 2, 4
    return args


# ---- what is measured


def _trained(args: argparse.Namespace, place: Path) -> tuple[Path, Path]:
    """A model that can say sixteen words, mostly, and utterances for it."""
    os.environ.update(own_place(place))
    from lib.ours import Ours, recipe_of

    make_whisper(place / "fresh", QUICK if args.quick else SHAPE)
    n_train, n_test = (64, 12) if args.quick else (4000, 200)
    train, test = sentences(place, n_train, 0, "train"), sentences(place, n_test, 1, "test")
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
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    with sides(__file__, NAMES, place, argv) as asked:
        rows = {side.name: side.ask("rows")["rows"] for side in asked}  # and it is warm
        for _ in range(args.rounds):
            for side in asked:
                found[side.name].append(side.ask("round"))
    own, full, pipeline = NAMES
    audio_s = sum(r["duration_s"] for r in rows[own])
    _say(
        f"{len(rows[own])} utterances, {audio_s:.0f} s, {args.batch} at once, {MAX_TOKENS} tokens at most, greedy; "
        f"{args.rounds} rounds\n{'':20} {'audio-s/s':>24} {'CPU s':>24} {'peak MB':>8} {'WER':>8}"
    )
    for name, rounds in found.items():
        speed = spread([audio_s / r["wall_s"] for r in rounds], 1)
        cpu, peak = spread([r["cpu_s"] for r in rounds], 2), max(r["peak_mb"] for r in rounds)
        _say(f"{name:20} {speed:>24} {cpu:>24} {peak:8.0f} {wer(rows[name]):8.2%}")
    walls = {name: [r["wall_s"] for r in rounds] for name, rounds in found.items()}
    _say(ratio("pipeline / ours, both in the full window", walls[pipeline], walls[full]))
    _say(ratio("pipeline / ours at its own length", walls[pipeline], walls[own]))
    said = {name: {r["id"]: r["text"] for r in rs} for name, rs in rows.items()}
    differ = [i for i, text in said[full].items() if said[pipeline][i] != text]
    _say(f"written differently in the same full window: {len(differ)} of {len(said[full])} {differ[:5] or ''}".rstrip())
    for i in differ[:5]:
        _say(f"  {i}: ours {said[full][i]!r}, pipeline {said[pipeline][i]!r}")
    low, high = paired(rows[own], rows[pipeline])
    points = 100 * (wer(rows[own]) - wer(rows[pipeline]))
    words = statistics.mean(len(r["reference"].split()) for r in rows[own])
    _say(f"ours at its own length − pipeline: {points:+.2f} points, 95 % {100 * low:+.2f} to {100 * high:+.2f}", end="")
    _say(f" (paired bootstrap over utterances of {words:.1f} words)")


# ---- a side, in its own process


def _side(args: argparse.Namespace) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    import torch

    torch.set_num_threads(args.threads)
    decode = _pipeline(args) if args.side == NAMES[2] else _ours(args, "own" if args.side == NAMES[0] else "full")

    def one_round() -> dict[str, float]:
        took = timed(decode)
        return {"wall_s": took.wall_s, "cpu_s": took.cpu_s}

    return {"rows": lambda: {"rows": decode()}, "round": one_round}


def _ours(args: argparse.Namespace, window: str) -> Callable[[], list[dict[str, Any]]]:
    """As `trainer evaluate` decodes: a batch holds so many padded seconds, whatever the number of its utterances."""
    from lib.ours import Decoder, Decoding

    window_s = json.loads((args.model / "config.json").read_text())["max_source_positions"] / 50
    how = Decoding(MAX_TOKENS, float(args.batch * window_s), args.precision, args.threads)
    return Decoder(args.model, args.manifest, window, how).rows


def _pipeline(args: argparse.Namespace) -> Callable[[], list[dict[str, Any]]]:
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

    def heard() -> Iterator[dict[str, Any]]:
        for e in examples:
            yield {"raw": read_audio(e.audio, e.start_s, e.duration_s), "sampling_rate": RATE}

    def decode() -> list[dict[str, Any]]:
        texts = pipe(heard(), generate_kwargs={"num_beams": 1, "max_new_tokens": MAX_TOKENS})
        pairs = zip(examples, texts, strict=True)
        return [{"id": e.id, "reference": e.text, "text": t["text"].strip()} for e, t in pairs]

    return decode


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
