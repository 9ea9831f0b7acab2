"""A training step of Whisper: the trainer against transformers' Seq2SeqTrainer as its own example sets it up.

python benchmarks/training.py short    3-s clips, whisper-tiny's shape: both as shipped, and both without a window
python benchmarks/training.py long     30-s clips: nothing to be won by not padding
python benchmarks/training.py wer      word errors after equal updates of a smaller model that can speak already
python benchmarks/training.py          all three; --quick: a smoke test of seconds, its figures mean nothing

Same weights at the start, data, precision, batch, schedule and number of updates. Each side has a process of its own
and trains a whole epoch from fresh weights in every round, the sides in turn; one warm-up round is not counted.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.corpus import clips_of_one_length, sentences
from lib.models import TINY, Shape, make_whisper
from lib.timing import answer, own_place, ratio, sides, spread, timed, where

EPOCHS = 10  # over which the other side's features are spread, where that is said
QUICK = Shape(32, 1, 2, 0)
QUIET_DB, LOUD_DB, TUNED_LR = 20.0, 0.0, 5e-4
WER_SHAPE = Shape(128, 1, 4, 0, window_s=10, mels=40)


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    if args.side:
        _be_a_side(args)
        return
    _say(where(args.threads, precision=args.precision, attention=args.attention))
    for part in [args.part] if args.part != "all" else ["short", "long", "wer"]:
        with tempfile.TemporaryDirectory() as place:
            PARTS[part](args, Path(place))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="all", choices=["short", "long", "wer", "all"])
    parser.add_argument("--rounds", type=int, default=7, help="of each side, in turn; 7")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps a round; 20")
    parser.add_argument("--batch", type=int, help="utterances a step; 8 short ones, 4 long ones, 24 for wer")
    parser.add_argument("--updates", type=int, default=120, help="of wer; 120")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--quick", action="store_true", help="a very small model, two rounds")
    for name in ("--side", "--place", "--train"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.steps, args.updates = 2, 3, 6
    return args


# ---- what is measured


def short(args: argparse.Namespace, place: Path) -> None:
    """3-s clips. Goal: at least five times, features counted on both sides, long windows as shipped."""
    _say(
        "\n3-s clips, whisper-tiny's shape with its 51,865 tokens: the head costs what it costs there. Texts have ten"
        "\ntokens, about as many as three seconds of speech. Long windows: 0.1 of utterances in the last 0.1 of steps"
    )
    _compare(args, place, 3.0, args.batch or 8, ["ours", "stock", "ours-own", "stock-own"])


def long(args: argparse.Namespace, place: Path) -> None:
    """30-s clips. Goal: not slower, a ratio of 0.97 or more."""
    _say("\n30-s clips, the same model")
    _compare(args, place, 30.0, args.batch or 4, ["ours", "stock"])


def _compare(args: argparse.Namespace, place: Path, clip_s: float, batch: int, names: list[str]) -> None:
    make_whisper(place / "model", QUICK if args.quick else TINY)
    n = args.steps * batch
    manifest = clips_of_one_length(place, n, clip_s)
    clips_of_one_length(place, 1, clip_s, seed=1, name="dev")  # our side wants one, and never decodes it here
    argv = _side_argv(args, place, manifest, batch)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    padding: dict[str, float] = {}
    with sides(__file__, names, place, argv) as asked:
        for side in asked:
            padding[side.name] = side.ask("warm")["padding"]
        for _ in range(args.rounds):
            for side in asked:
                found[side.name].append(side.ask("round"))
    _say(
        f"{batch} utterances a step, {args.steps} steps a round, {args.rounds} rounds; seconds a step: median (min–max)"
        f"\n{'':10} {'features':>22} {'steps':>22} {'both':>22} {'both, CPU s':>22} {'audio-s/s':>10} "
        f"{'peak MB':>8} {'padding':>8}"
    )
    for name, rounds in found.items():
        both = [r["both_s"] for r in rounds]
        columns = [spread([r[k] for r in rounds]) for k in ("features_s", "steps_s", "both_s", "both_cpu_s")]
        speed, peak = batch * clip_s / statistics.median(both), max(r["peak_mb"] for r in rounds)
        cells = " ".join(f"{c:>22}" for c in columns)
        _say(f"{name:10} {cells} {speed:10.1f} {peak:8.0f} {padding[name]:8.1%}")
    for theirs, ours in zip(names[1::2], names[::2], strict=True):
        a, b = found[theirs], found[ours]
        _say(ratio(f"{theirs} / {ours}, both (the map over one epoch)", _of(a, "both_s"), _of(b, "both_s")))
        _say(ratio("  CPU time, both", _of(a, "both_cpu_s"), _of(b, "both_cpu_s")))
        spread_out = [r["steps_s"] + r["features_s"] / EPOCHS for r in a]
        _say(ratio(f"  both, the map over {EPOCHS} epochs", spread_out, _of(b, "both_s")))
        _say(ratio("  steps alone", _of(a, "steps_s"), _of(b, "steps_s")))
        _say(ratio("  features alone", _of(a, "features_s"), _of(b, "features_s")))


def wer(args: argparse.Namespace, place: Path) -> None:
    """Goal: after equal updates within a point of theirs, decoded at its own length and in the full window.

    Both go on from one model that can write and listen, as one that is fine-tuned can, on words in louder noise. From
    fresh weights the comparison would say little: in the same updates the other side does not learn to listen at all.
    """
    shape = Shape(16, 1, 2, 0, window_s=10, mels=16) if args.quick else WER_SHAPE
    n_train, n_test, n_base = (64, 16, 3) if args.quick else (3000, 400, 450)
    _say(
        f"\nWord errors after {args.updates} equal updates from one trained model: {shape.layers} layers twice of"
        f" {shape.d_model}, a window of {shape.window_s} s,\none to four of sixteen words of tones; it was trained at"
        f" {QUIET_DB:.0f} dB above the noise, and is tuned and tested at {LOUD_DB:.0f} dB"
    )
    os.environ.update(own_place(place))
    from lib.ours import Decoder, Decoding
    from lib.stock import Stock
    from lib.words import paired
    from lib.words import wer as rate

    make_whisper(place / "fresh", shape)
    sentences(place, 1, 2, "dev")
    before = _trained_by_ours(args, shape, place / "fresh", sentences(place, n_train, 0, "quiet"), n_base, 3e-3)
    before[0].export(before[1], place / "model")
    tuned_on, test = sentences(place, n_train, 1, "train", LOUD_DB), sentences(place, n_test, 2, "test", LOUD_DB)
    took = {"before": 0.0}
    began = time.perf_counter()
    mine = _trained_by_ours(args, shape, place / "model", tuned_on, args.updates, TUNED_LR)
    took["ours"] = time.perf_counter() - began
    mine[0].export(mine[1], place / "ours")
    how = {"steps": args.updates, "batch": args.batch or 24, "lr": TUNED_LR}
    more = {"precision": args.precision, "attention": args.attention}
    stock = Stock(model=place / "model", manifest=tuned_on, place=place, **how, **more)
    features = timed(stock.make_features).wall_s
    theirs = stock.set_up()
    took["stock"] = timed(theirs.train).wall_s + features
    theirs.model.save_pretrained(place / "stock")
    stock.processor.save_pretrained(place / "stock")
    (place / "before").symlink_to(place / "model")
    ways = {"own": "at its own length", "full": "in the full window"}
    decoding = Decoding(threads=args.threads, precision=args.precision)
    rows = {(side, way): Decoder(place / side, test, way, decoding).rows() for side in took for way in ways}
    for (side, way), found in rows.items():
        _say(f"{side:6} trained in {took[side]:5.0f} s, decoded {ways[way]:18} WER {rate(found):.2%}")
    for way, name in ways.items():
        for base in ways:
            low, high = paired(rows["ours", way], rows["stock", base])
            differs = rate(rows["ours", way]) - rate(rows["stock", base])
            points = f"{100 * differs:+.2f} points, 95 % {100 * low:+.2f} to {100 * high:+.2f}"
            _say(f"ours {name} − stock {ways[base]}: {points}")


def _trained_by_ours(
    args: argparse.Namespace, shape: Shape, model: Path, manifest: Path, steps: int, lr: float
) -> tuple[Any, Any]:
    """The task and its module after so many steps."""
    from lib.ours import Ours, recipe_of

    loop = {"steps": steps, "step_utts": args.batch or 24, "threads": args.threads, "precision": args.precision}
    more: dict[str, Any] = {"data": {"max_s": float(shape.window_s)}, "optim": {"lr": lr}}
    training = Ours(recipe_of(model, manifest, loop=loop, model={"attention": args.attention}, **more)).set_up()
    training.run()
    return training.task, training.parts.module


PARTS = {"short": short, "long": long, "wer": wer}


# ---- a side, in its own process


def _side_argv(args: argparse.Namespace, place: Path, manifest: Path, batch: int) -> list[str]:
    same = ["--threads", "--precision", "--attention", "--steps"]
    told = [x for name in same for x in (name, str(getattr(args, name[2:])))]
    return ["--place", str(place), "--train", str(manifest), "--batch", str(batch), *told]


def _be_a_side(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    make = _our_side if args.side.startswith("ours") else _stock_side
    do = make(args)
    answer(do)


def _our_side(args: argparse.Namespace) -> Mapping[str, Any]:
    from lib.ours import Ours, recipe_of

    from trainer.recipe.base import Recipe

    place = Path(args.place)
    window = {"full_window_share": 0.0} if args.side == "ours-own" else {}

    def recipe(steps: int) -> Recipe:
        loop = {"steps": steps, "step_utts": args.batch, "precision": args.precision, "threads": args.threads}
        return recipe_of(place / "model", Path(args.train), loop=loop, model={"attention": args.attention, **window})

    def warm() -> dict[str, Any]:
        ours = Ours(recipe(2))
        ours.set_up().run()
        ours.features()
        return {"padding": Ours(recipe(args.steps)).padding_share()}

    def one_round() -> dict[str, float]:
        ours = Ours(recipe(args.steps))
        training = ours.set_up()
        both, features = timed(training.run), timed(ours.features)
        return {
            "features_s": features.wall_s / args.steps,
            "steps_s": (both.wall_s - features.wall_s) / args.steps,
            "both_s": both.wall_s / args.steps,
            "both_cpu_s": both.cpu_s / args.steps,
        }

    return {"warm": warm, "round": one_round}


def _stock_side(args: argparse.Namespace) -> Mapping[str, Any]:
    from lib.stock import Stock

    def stock(steps: int) -> Stock:
        return Stock(
            model=Path(args.place) / "model",
            manifest=Path(args.train),
            place=Path(args.place),
            steps=steps,
            batch=args.batch,
            lr=1e-3,
            precision=args.precision,
            attention=args.attention,
            own_length=args.side == "stock-own",
        )

    def warm() -> dict[str, Any]:
        one = stock(2)
        one.rows = one.rows[: 2 * args.batch]
        one.make_features()
        one.set_up().train()
        heard_s = sum(r["duration_s"] for r in one.rows)
        return {"padding": 0.0 if one.own_length else 1 - heard_s / (30.0 * len(one.rows))}

    def one_round() -> dict[str, float]:
        one = stock(args.steps)
        features = timed(one.make_features)
        trainer = one.set_up()
        steps = timed(trainer.train)
        return {
            "features_s": features.wall_s / args.steps,
            "steps_s": steps.wall_s / args.steps,
            "both_s": (features.wall_s + steps.wall_s) / args.steps,
            "both_cpu_s": (features.cpu_s + steps.cpu_s) / args.steps,
        }

    return {"warm": warm, "round": one_round}


# ---- numbers


def _of(rounds: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return [r[key] for r in rounds]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
