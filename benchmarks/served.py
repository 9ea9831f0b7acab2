"""Why a server's word error rate differs: one thing at a time is left as faster-whisper would have it.

python benchmarks/served.py --model EXPORT [--check M.jsonl] [--utterances 200] [--set KEY=VALUE …]

Both sides hear the same samples. The first line is asked as `trainer export` writes it into decode.json; each other
line changes one setting of it. Said are texts that differ from ours and the word error rate.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.evaluate import predict
from trainer.exporting.ct2 import convert, versions
from trainer.exporting.faster import Faster
from trainer.exporting.gate import Ours, check_set, open_ours
from trainer.parity import compare_texts

FALLBACK = {
    "temperature": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
    "compression_ratio_threshold": 2.4,
    "log_prob_threshold": -1.0,
}
SILENCE = {"no_speech_threshold": 0.6, "log_prob_threshold": -1.0}
WAYS: dict[str, dict[str, Any]] = {
    "as decode.json says": {},
    "the sound is not padded with zeros": {"padded": False},
    "max_new_tokens as in the recipe": {"max_new_tokens": "ours"},
    "suppress_tokens=[-1]": {"suppress_tokens": [-1]},
    "with timestamps": {"without_timestamps": False},
    "beam_size=5": {"beam_size": 5},
    "hotter where it is unsure (the thresholds)": FALLBACK,
    "no_speech_threshold=0.6": SILENCE,
    "vad_filter": {"vad_filter": True},
    "all of these, as a server begins": {
        "padded": False,
        "suppress_tokens": [-1],
        "without_timestamps": False,
        "beam_size": 5,
        "max_new_tokens": None,
        **FALLBACK,
        **SILENCE,
    },
}


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    ours = open_ours(args.model, args.set)
    manifest = check_set(ours, args.check, args.utterances)
    how = ours.recipe.eval.model_copy(update={"buckets": []})
    recipe = ours.recipe.model_copy(update={"eval": how})
    rows, _ = predict(ours.task, ours.parts, manifest, recipe, ours.machine)
    heard = {r["id"]: r for r in rows if not r.get("reason")}
    waves = {}
    for i in range(len(manifest)):
        if manifest[i].id in heard:
            (item,) = ours.task.load([manifest[i]], [None])
            waves[manifest[i].id] = item.wave_T
    print(f"{len(waves)} utterances, {', '.join(f'{k} {v}' for k, v in versions().items())}")
    with tempfile.TemporaryDirectory() as folder:
        for quantisation in ("float32", "int8"):
            place = Path(folder) / quantisation
            convert(args.model, place, quantisation)
            faster = Faster(place, ours.asking, ours.machine.device.type, ours.recipe.loop.threads)
            ways = WAYS if quantisation == "float32" else {"int8, as decode.json says": {}}
            for name, changes in ways.items():
                print(_line(name, changes, ours, faster, list(heard.values()), waves), flush=True)


def _line(
    name: str, changes: dict[str, Any], ours: Ours, faster: Faster, rows: list[Any], waves: dict[str, Any]
) -> str:
    if changes.get("max_new_tokens") == "ours":
        changes = {**changes, "max_new_tokens": ours.asking.max_new_tokens}
    try:
        texts = {i: faster.text_of(wave, **changes) for i, wave in waves.items()}
    except (RuntimeError, ValueError) as e:
        return f"{name:<44} fails: {str(e).splitlines()[0]}"
    found = compare_texts(rows, texts, ours.recipe.eval)
    rates = f"WER {100 * found.wer_theirs:6.2f} %, ours {100 * found.wer_ours:6.2f} %"
    return f"{name:<44} {len(found.differing):4d} differ   {rates}"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an export of a Whisper")
    parser.add_argument("--check", help="a manifest; the recipe's test set by default")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
