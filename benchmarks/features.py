"""Log-mel of short utterances: batched on the device at their own length, against the stock extractor.

Prints medians of 7 rounds, both sides in turn, in milliseconds an utterance. python benchmarks/features.py
"""

import statistics
import time

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from trainer.data.audio import RATE
from trainer.data.features import LogMel

N, SECONDS, ROUNDS = 32, 3.0, 7


def main() -> None:
    torch.set_num_threads(2)
    stock = WhisperFeatureExtractor(feature_size=80)
    ours = LogMel(stock)
    wave_BT = np.random.default_rng(0).normal(0, 0.1, (N, round(SECONDS * RATE))).astype(np.float32)
    sides = {
        f"batched, own length ({SECONDS:g} s)": lambda: ours(torch.from_numpy(wave_BT)),
        "batched, padded to 30 s": lambda: ours(torch.nn.functional.pad(torch.from_numpy(wave_BT), (0, 432_000))),
        "stock extractor, 30 s": lambda: stock(list(wave_BT), sampling_rate=RATE, return_tensors="pt"),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            taken[name].append(1000 * (time.perf_counter() - began) / N)
    for name, ms in taken.items():
        print(f"{name:32} median {statistics.median(ms):7.2f} ms/utterance  ({min(ms):.2f}–{max(ms):.2f})")


if __name__ == "__main__":
    main()
