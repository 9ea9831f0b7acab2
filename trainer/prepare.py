"""`trainer prepare`: the work that needs no GPU, done before one is paid for."""

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from trainer.data.audio import read_audio
from trainer.data.demo import prepare_demo
from trainer.data.foreign import read_foreign
from trainer.data.manifest import Manifest
from trainer.data.places import data_root
from trainer.data.pool import decoders
from trainer.data.sets import open_data
from trainer.errors import AudioError, BadRecipe
from trainer.recipe.load import load_recipe
from trainer.task import Bad


def prepare_demo_corpus(out: Path, n_train: int, n_dev: int, n_test: int, seed: int) -> None:
    """The demo's corpus under the volume's data/, or here."""
    target = data_root() / out
    prepare_demo(target, n_train=n_train, n_dev=n_dev, n_test=n_test, seed=seed)
    print(f"✓ {target}")


def prepare_experiment(file: Path) -> int:
    """Index the manifests and decode every file once; says what is unusable and why. 0 where training may begin."""
    recipe = load_recipe(file)
    data = open_data(recipe)
    worst = 0
    for name, manifest in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        if manifest is None:
            continue
        bad = [*manifest.bad, *_undecodable(manifest, recipe.data.workers, name)]
        share = len(bad) / max(1, len(manifest) + len(manifest.bad))
        print(f"{name}: {len(manifest)} utterances, {manifest.hours:.2f} h, {len(bad)} unusable")
        for reason, n in Counter(b.reason for b in bad).most_common(10):
            print(f"  {n} × {reason}")
        if share > recipe.data.max_bad_share:
            print(f"  that is {100 * share:.1f} %, data.max_bad_share allows {100 * recipe.data.max_bad_share:g} %")
            worst = 2
    return worst


def prepare_from(kind: str, source: str, out: Path, sets: Sequence[str]) -> int:
    """Manifests of others' data under `out`, one a set, and quarantine.jsonl beside them. 1: nothing was usable."""
    names = {}
    for text in sets:
        field, eq, theirs = text.partition("=")
        if not eq or not theirs:
            raise BadRecipe.one("--set", f"{text!r} is not FIELD=COLUMN, as in text=sentence")
        names[field] = theirs
    out.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    files: dict[str, IO[str]] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _remove(out / f".{name}.jsonl.part" for name in files))

        def written(name: str) -> IO[str]:
            if name not in files:  # beside its place until it is whole
                files[name] = stack.enter_context((out / f".{name}.jsonl.part").open("w", encoding="utf-8"))
            return files[name]

        for name, answer in read_foreign(kind, Path(source), names):
            if isinstance(answer, Bad):
                reasons[answer.reason] += 1
                written("quarantine").write(json.dumps({"id": answer.id, "reason": answer.reason}) + "\n")
            else:
                counts[name] += 1
                line = {k: v for k, v in answer.items() if v not in ("", None, {})}
                written(name).write(json.dumps(line, ensure_ascii=False) + "\n")
        for name, f in files.items():
            f.close()
            os.replace(out / f".{name}.jsonl.part", out / f"{name}.jsonl")
    for name, n in counts.items():
        print(f"✓ {out / name}.jsonl: {n} utterances")
    for reason, n in reasons.most_common(10):
        print(f"  {n} × {reason}")
    return 0 if counts else 1


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _undecodable(manifest: Manifest, workers: int, name: str) -> list[Bad]:
    def read(i: int) -> Bad | None:
        e = manifest[i]
        try:
            read_audio(e.audio, e.start_s, e.duration_s)
            return None
        except AudioError as error:
            return Bad(e.id, error.message)

    found = []
    with decoders(workers, "audio") as pool:
        for n, bad in enumerate(pool.map(read, range(len(manifest))), start=1):
            if bad:
                found.append(bad)
            if sys.stderr.isatty() and (n % 100 == 0 or n == len(manifest)):
                print(f"\r{name}: {n} of {len(manifest)} read", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return found
