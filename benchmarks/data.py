"""Manifests of millions of rows, and decoding with features against what people use instead.

python benchmarks/data.py rows [ROWS …]      default 1,000,000 10,000,000; needs 0.4 GB of disk a million
python benchmarks/data.py audio [MANIFEST]   both sides in turn; a manifest, or noise with a rhythm of speech
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 9
RATE = 16_000


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="what")
    p = commands.add_parser("rows")
    p.add_argument("rows", nargs="*", type=int, default=[1_000_000, 10_000_000])
    p = commands.add_parser("audio")
    p.add_argument("manifest", nargs="?", type=Path)
    args = parser.parse_args(argv)
    if args.what == "rows":
        for n in args.rows:
            measure_rows(n)
    else:
        measure_audio(args.manifest)


# ---- rows


def measure_rows(n: int) -> None:
    """The index is built in one process; another one opens it and draws the first batch, and is measured."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_manifest(root, n)
        for what in ("read for the first time", "opened again", "opened again, steps of seconds"):
            context = multiprocessing.get_context("spawn")
            answers: Any = context.Queue()
            child = context.Process(target=_first_batch, args=(root, "seconds" in what, answers))
            child.start()
            seconds, cpu_s, anon_mb, peak_mb, rows = answers.get()
            child.join()
            print(
                f"{n:>10,} rows {what:32}: first batch of {rows} after {seconds:6.2f} s ({cpu_s:.2f} of one core), "
                f"anonymous memory + {anon_mb:4.0f} MB (at most + {peak_mb:.0f} MB)",
                flush=True,
            )


def _write_manifest(root: Path, n: int) -> None:
    import soundfile

    rng, data = np.random.default_rng(0), root / "data"
    data.mkdir()
    for i in range(16):
        soundfile.write(data / f"{i}.wav", rng.normal(0, 0.1, 10 * RATE), RATE)
    seconds = rng.uniform(1, 9, n).round(2).tolist()
    rows = [{"id": f"dev-{i}", "audio": "0.wav", "duration_s": 2.0, "text": "one"} for i in range(2000)]
    (data / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with (data / "m.jsonl").open("w") as f:
        for i, s in enumerate(seconds):
            f.write(
                f'{{"id": "utterance-{i:08}", "audio": "{i % 16}.wav", "duration_s": {s}, '
                f'"text": "one two three four", "speaker": "s{i % 5000}", "age_bucket": "5-7"}}\n'
            )


def _first_batch(root: Path, of_seconds: bool, answers: Any) -> None:
    import threading

    os.environ["PODCTL_VOLUME"] = str(root)
    os.environ["PODCTL_DISK"] = str(root / "disk")
    from trainer.data.loader import StepLoader
    from trainer.data.sets import open_data
    from trainer.recipe.load import parse_recipe
    from trainer.task import make_task

    step = {"step_s": 600} if of_seconds else {"step_utts": 256}
    recipe = parse_recipe(
        {
            "task": "whisper",
            "model": {"from_scratch": {"d_model": 64}},
            "data": {"train": ["m.jsonl"], "dev": ["dev.jsonl"], "workers": 1},
            "optim": {"lr": 1e-3},
            "loop": {"epochs": 1, **step},
            "eval": {"normaliser": "basic", "every_steps": 1000},
        }
    )
    task = make_task(recipe)  # its libraries are no part of what is measured
    before, peak, done = _anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    first = next(iter(StepLoader(task, open_data(recipe).train, recipe).steps(0, 1)))
    seconds, cpu_s, after = time.perf_counter() - began, time.process_time() - cpu, _anonymous_mb()
    done.set()
    watcher.join()
    sound_mb = sum(m.batch.wave_BT.numel() * 4 for m in first.micros) / 1e6  # the batch itself
    rows = sum(len(m.batch.ids) for m in first.micros)
    answers.put((seconds, cpu_s, after - before - sound_mb, max(peak[0], after) - before, rows))


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise OSError("this kernel does not tell anonymous memory apart")


# ---- audio


def measure_audio(manifest: Path | None) -> None:
    """Hours of audio a second of one core, decoded and made into log-mel, in batches of 16 in the manifest's order."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = _corpus(Path(folder)) if manifest is None else _rows(manifest)
        hours = sum(r["duration_s"] for r in rows) / 3600
        sides = _sides(rows, Path(folder))
        print(f"{len(rows)} recordings, {hours * 60:.1f} min, mean {hours * 3600 / len(rows):.2f} s, one thread")
        for name, run in sides.items():  # files into memory, code compiled, our cache filled
            print(f"  warm: {name}: {_timed(run):.2f} s", flush=True)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, run in sides.items():
                taken[name].append(_timed(run))
        base = next(iter(taken.values()))
        for name, seconds in taken.items():
            speeds = sorted(hours / s for s in seconds)
            ratios = sorted(s / b for s, b in zip(seconds, base, strict=True))
            print(
                f"{name:58} {statistics.median(speeds):7.4f} h/s ({speeds[0]:.4f}–{speeds[-1]:.4f})"
                f"   takes {statistics.median(ratios):5.2f} × the first ({ratios[0]:.2f}–{ratios[-1]:.2f})"
            )


def _sides(rows: list[dict[str, Any]], folder: Path) -> dict[str, Callable[[], None]]:
    import torch
    from transformers import WhisperFeatureExtractor

    from trainer.data.features import LogMel
    from trainer.data.pcm import PcmCache
    from trainer.data.store import Store

    extractor = WhisperFeatureExtractor(feature_size=80)
    mel = LogMel(extractor)
    batches = [rows[i : i + 16] for i in range(0, len(rows), 16)]

    def ours(cache: PcmCache, window: bool) -> None:
        for batch in batches:
            waves = [cache.read(r["audio"], 0.0, r["duration_s"]) for r in batch]
            size = 30 * RATE if window else -(-max(map(len, waves)) // (RATE // 2)) * (RATE // 2)
            wave_BT = torch.zeros(len(batch), size)
            for b, wave_T in enumerate(waves):
                wave_BT[b, : len(wave_T)] = torch.from_numpy(wave_T)
            mel(wave_BT)

    kept = PcmCache(Store(folder / "pcm", 10.0, "decoded audio"))
    sides: dict[str, Callable[[], None]] = {
        "ours: kept from the first epoch, own length": lambda: ours(kept, False),
        "ours: decoded, own length (the first epoch)": lambda: ours(PcmCache(None), False),
        "ours: decoded, padded to 30 s": lambda: ours(PcmCache(None), True),
    }
    theirs = _datasets_side(batches, extractor)
    sides |= {
        "datasets + WhisperFeatureExtractor (as its example, 30 s)": lambda: theirs(True),
        "datasets + WhisperFeatureExtractor, padded to the longest": lambda: theirs(False),
    }
    try:
        sides["lhotse: cuts, collate_audio + Fbank (80 bins), own length"] = _lhotse_side(rows)
    except ImportError as e:
        print(f"without lhotse ({e})", file=sys.stderr)
    return sides


def _datasets_side(batches: list[list[dict[str, Any]]], extractor: Any) -> Callable[[bool], None]:
    """As the speech recognition example has it: the Audio feature decodes, the extractor is called a row."""
    import datasets
    import soundfile
    import soxr

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list([{"path": r["audio"]} for batch in batches for r in batch])
    sizes = [len(b) for b in batches]
    try:
        import torchcodec  # noqa: F401

        heard = table.cast_column("path", datasets.Audio(sampling_rate=RATE))
        decode: Callable[[Any], np.ndarray] = lambda x: x["array"]  # noqa: E731
    except (ImportError, RuntimeError):
        print("without torchcodec: datasets hands out paths, soundfile decodes", file=sys.stderr)
        heard = table

        def decode(path: Any) -> np.ndarray:
            wave_T, rate = soundfile.read(path, dtype="float32")
            return wave_T if rate == RATE else soxr.resample(wave_T, rate, RATE, quality="HQ")

    def run(window: bool) -> None:
        at = 0
        for n in sizes:
            waves = [decode(heard[i]["path"]) for i in range(at, at + n)]
            at += n
            if window:
                features = [extractor(w, sampling_rate=RATE).input_features[0] for w in waves]
                np.stack(features)
            else:
                extractor(waves, sampling_rate=RATE, padding="longest", return_tensors="pt")

    return run


def _lhotse_side(rows: list[dict[str, Any]]) -> Callable[[], None]:
    """Cuts from recordings; its own 80-bin log filter banks, batch by batch, each cut at its own length."""
    import lhotse
    from lhotse.dataset.collation import collate_audio

    recordings = [lhotse.Recording.from_file(r["audio"], recording_id=str(i)) for i, r in enumerate(rows)]
    cuts = [r.to_cut() if r.sampling_rate == RATE else r.resample(RATE).to_cut() for r in recordings]
    groups = [lhotse.CutSet.from_cuts(cuts[i : i + 16]) for i in range(0, len(cuts), 16)]
    fbank = lhotse.Fbank(lhotse.FbankConfig(sampling_rate=RATE, num_mel_bins=80))

    def run() -> None:
        for group in groups:
            audio, lengths = collate_audio(group)
            fbank.extract_batch([a[:n] for a, n in zip(audio, lengths.tolist(), strict=True)], sampling_rate=RATE)

    return run


def _corpus(folder: Path) -> list[dict[str, Any]]:
    """Noise with speech's rhythm: 16-bit FLAC at 16 kHz, 200 of 1 to 6 seconds."""
    import soundfile

    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        n = int(rng.uniform(1, 6) * RATE)
        envelope = np.abs(np.sin(np.arange(n) * 2 * np.pi * 3 / RATE)) * 0.2
        soundfile.write(
            folder / f"{i}.flac", np.cumsum(rng.normal(0, 0.05, n)) % 0.5 * envelope, RATE, subtype="PCM_16"
        )
        rows.append({"audio": str(folder / f"{i}.flac"), "duration_s": n / RATE})
    return rows


def _rows(manifest: Path) -> list[dict[str, Any]]:
    """Of any manifest whose audio lies in its folder, or in a folder of that."""
    from trainer.data.audio import header
    from trainer.data.finder import AudioFinder

    finder = AudioFinder([manifest.parent, *(p for p in manifest.parent.iterdir() if p.is_dir())])
    raws = [json.loads(line) for line in manifest.read_text().splitlines()[:400]]
    paths = [finder.find(r.get("audio") or r["audio_path"]) for r in raws]
    return [{"audio": p, "duration_s": header(p).duration_s} for p in paths]


def _timed(run: Callable[[], None]) -> float:
    """Seconds of processor time, all threads together: others on the machine delay it, and change it little."""
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main(sys.argv[1:])
