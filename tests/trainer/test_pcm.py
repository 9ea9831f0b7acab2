"""The cache of decoded audio: it changes no training, whoever else writes, whenever it is killed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech import make_corpus, recipe_dict

from trainer.data import store
from trainer.data.audio import RATE, read_audio
from trainer.data.pcm import PcmCache, rounded
from trainer.data.places import audio_folder, open_cache, say_cache
from trainer.data.store import RECORD, Store
from trainer.errors import AudioError, BadRecipe
from trainer.recipe.data import Data
from trainer.recipe.load import changes, parse_recipe

ROOT = Path(__file__).parents[2]


class Counting:
    """Decodes, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, path: str, start_s: float, duration_s: float) -> np.ndarray:
        self.asked.append(path)
        return read_audio(path, start_s, duration_s)


def sounds(folder: Path, n: int, seconds: float = 0.5, rate: int = RATE, subtype: str = "PCM_16") -> list[str]:
    rng = np.random.default_rng(0)
    for i in range(n):
        wave = rng.normal(0, 0.1, round(seconds * rate)).clip(-1, 1)
        soundfile.write(folder / f"{i}.wav", wave, rate, subtype=subtype)
    return [str(folder / f"{i}.wav") for i in range(n)]


def cache_of(folder: Path, limit_gb: float = 1.0) -> tuple[PcmCache, Counting]:
    decode = Counting()
    return PcmCache(Store(folder / "cache", limit_gb, "decoded audio"), decode), decode


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
def test_whatever_was_sixteen_bits_comes_back_bit_for_bit(samples: list[int]) -> None:
    wave = np.array(samples, np.int16).astype(np.float32) / np.float32(32768)
    assert np.array_equal(rounded(wave).wave(), wave)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=50), st.integers(-40, 3))
def test_everything_else_is_rounded_96_db_below_its_own_peak_and_never_clipped(values: list[float], power: int) -> None:
    wave = np.ldexp(np.array(values, np.float32), power).astype(np.float32)
    wave[np.abs(wave) < 1e-15] = 0
    peak = float(np.abs(wave).max())
    assert float(np.abs(rounded(wave).wave() - wave).max()) <= peak * 2**-15 + 1e-18
    again = rounded(rounded(wave).wave()).wave()
    assert np.array_equal(again, rounded(wave).wave()), "rounding twice is rounding once"


@pytest.mark.parametrize(("rate", "subtype"), [(RATE, "PCM_16"), (8000, "PCM_16"), (44_100, "PCM_24"), (RATE, "FLOAT")])
def test_kept_or_not_a_recording_is_the_same(tmp_path: Path, rate: int, subtype: str) -> None:
    (path,) = sounds(tmp_path, 1, rate=rate, subtype=subtype)
    cache, decode = cache_of(tmp_path)
    never = PcmCache(None).read(path, 0.0, 0.5)
    first, second = cache.read(path, 0.0, 0.5), cache.read(path, 0.0, 0.5)
    assert decode.asked == [path]
    assert np.array_equal(first, never)
    assert np.array_equal(second, never)
    if (rate, subtype) == (RATE, "PCM_16"):
        assert np.array_equal(never, read_audio(path, 0.0, 0.5))


def test_another_process_finds_what_one_has_decoded(tmp_path: Path) -> None:
    paths = sounds(tmp_path, 3)
    once, decode = cache_of(tmp_path)
    again, decode_again = cache_of(tmp_path)
    waves = [once.read(p, 0.0, 0.5) for p in paths]
    assert all(np.array_equal(again.read(p, 0.0, 0.5), w) for p, w in zip(paths, waves, strict=True))
    assert (len(decode.asked), len(decode_again.asked)) == (3, 0)


def test_a_span_and_its_neighbour_and_a_changed_file_are_recordings_of_their_own(tmp_path: Path) -> None:
    (path,) = sounds(tmp_path, 1, seconds=2.0)
    cache, decode = cache_of(tmp_path)
    for start_s in (0.0, 0.5, 0.0, 0.5):
        assert np.array_equal(cache.read(path, start_s, 0.5), read_audio(path, start_s, 0.5))
    assert len(decode.asked) == 2
    soundfile.write(path, np.full(2 * RATE, 0.25, np.float32), RATE)
    os.utime(path, ns=(1, 1))
    assert np.all(cache.read(path, 0.0, 0.5) == 0.25)


def test_what_can_not_be_decoded_is_told_every_time_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("not audio")
    cache, decode = cache_of(tmp_path)
    for path in ("a.wav", "a.wav", "gone.wav"):
        with pytest.raises(AudioError):
            cache.read(str(tmp_path / path), 0.0, 0.5)
    assert len(decode.asked) == 3
    assert not (tmp_path / "cache").exists()


def shards(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "cache").glob(f"*.{kind}"))


def _torn_entry(folder: Path) -> None:
    with shards(folder, "idx")[0].open("r+b") as f:
        f.truncate(RECORD.itemsize * 2 + 7)


def _samples_cut_short(folder: Path) -> None:
    with shards(folder, "bytes")[0].open("r+b") as f:
        f.truncate(20_000)


def _samples_lost(folder: Path) -> None:
    with shards(folder, "bytes")[0].open("r+b") as f:
        f.write(b"\0" * 48_000)


def _nonsense(folder: Path) -> None:
    shards(folder, "idx")[0].write_bytes(os.urandom(RECORD.itemsize * 3))


def _gone(folder: Path) -> None:
    shards(folder, "bytes")[0].unlink()


def _empty(folder: Path) -> None:
    shards(folder, "bytes")[0].write_bytes(b"")


@pytest.mark.parametrize("damage", [_torn_entry, _samples_cut_short, _samples_lost, _nonsense, _gone, _empty])
def test_whatever_a_kill_or_a_power_cut_leaves_behind_is_decoded_again(tmp_path: Path, damage) -> None:
    paths = sounds(tmp_path, 3)
    before, _ = cache_of(tmp_path)
    waves = [before.read(p, 0.0, 0.5) for p in paths]
    damage(tmp_path)
    after, decode = cache_of(tmp_path)
    for _ in range(2):
        assert all(np.array_equal(after.read(p, 0.0, 0.5), w) for p, w in zip(paths, waves, strict=True))
    assert 1 <= len(decode.asked) <= 3, "what was lost is decoded once more, and kept"


def test_beyond_the_limit_the_longest_unused_shards_go_and_then_no_more_is_kept(tmp_path: Path, caplog) -> None:
    paths = sounds(tmp_path, 9)
    one = 2 * RATE // 2 + RECORD.itemsize
    for n, part in enumerate((paths[:2], paths[2:4])):
        old, _ = cache_of(tmp_path)
        for p in part:
            old.read(p, 0.0, 0.5)
        os.utime(max(shards(tmp_path, "idx"), key=lambda f: f.stat().st_mtime), (100 + n, 100 + n))
    cache, decode = cache_of(tmp_path, 4.5 * one / 1e9)
    for _ in range(3):
        for p in [*paths[2:4], *paths[4:9]]:
            assert np.array_equal(cache.read(p, 0.0, 0.5), read_audio(p, 0.0, 0.5))
    assert sum(f.stat().st_size for f in (tmp_path / "cache").iterdir()) <= 4.5 * one
    assert "takes no more" in caplog.text
    assert caplog.text.count("takes no more") == 1
    assert decode.asked.count(paths[2]) == 0, "what was used lately stayed"
    assert decode.asked.count(paths[4]) == 1, "the oldest made room for it"
    assert decode.asked.count(paths[8]) == 3


def test_a_disk_that_takes_nothing_stops_the_cache_and_no_training(tmp_path: Path, monkeypatch, caplog) -> None:
    paths = sounds(tmp_path, 2)
    cache, decode = cache_of(tmp_path)
    monkeypatch.setattr(store, "_write", _no_space)
    for p in (*paths, *paths):
        assert np.array_equal(cache.read(p, 0.0, 0.5), read_audio(p, 0.0, 0.5))
    assert len(decode.asked) == 4
    assert "No space left" in caplog.text


def _no_space(fd: int, data: bytes) -> None:
    os.write(fd, data[:100])
    raise OSError(28, "No space left on device")


def test_threads_that_read_at_once_all_hear_the_same(tmp_path: Path) -> None:
    paths = sounds(tmp_path, 20, seconds=0.1)
    cache, _ = cache_of(tmp_path)
    wrong: list[str] = []

    def listen(order: list[str]) -> None:
        for p in order:
            if not np.array_equal(cache.read(p, 0.0, 0.1), read_audio(p, 0.0, 0.1)):
                wrong.append(p)

    threads = [threading.Thread(target=listen, args=(paths[i:] + paths[:i],)) for i in range(0, 20, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


READER = """
import sys
from pathlib import Path
from trainer.data.pcm import PcmCache
from trainer.data.store import Store
cache = PcmCache(Store(Path(sys.argv[1]), 1.0, "audio"))
print("reading", flush=True)
while True:
    for n, path in enumerate(sys.argv[2:]):
        cache.read(path, 0.0, 0.1 + 1e-4 * (n % 50))
    cache = PcmCache(Store(Path(sys.argv[1] + "-more"), 1.0, "audio"))
"""


@pytest.mark.slow
def test_two_processes_killed_anywhere_leave_a_cache_that_tells_the_truth(tmp_path: Path) -> None:
    paths = sounds(tmp_path, 40, seconds=0.2)
    for turn in range(12):
        argv = [sys.executable, "-c", READER, str(tmp_path / "cache"), *paths]
        both = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
        for n, process in enumerate(both):
            assert process.stdout is not None
            process.stdout.readline()
            threading.Event().wait(0.003 * turn * (n + 1))  # a moment of its own for each kill
            process.kill()
            process.wait()
    cache, _ = cache_of(tmp_path)
    for n, path in enumerate(paths):
        duration_s = 0.1 + 1e-4 * (n % 50)
        assert np.array_equal(cache.read(path, 0.0, duration_s), read_audio(path, 0.0, duration_s))


def test_the_cache_lies_on_the_local_disk_and_never_on_the_volume(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PODCTL_VOLUME", str(tmp_path / "volume"))
    monkeypatch.setenv("PODCTL_DISK", str(tmp_path / "disk"))
    data = Data(train=["x"], dev=["y"])
    assert audio_folder(data) == tmp_path / "disk" / "cache" / "audio"
    with pytest.raises(BadRecipe, match="lies on the volume"):
        open_cache(data.model_copy(update={"cache_dir": str(tmp_path / "volume" / "cache")}))


def test_a_training_says_whether_its_audio_fits_and_may_be_resumed_with_another_limit(tmp_path: Path, caplog) -> None:
    from trainer.data.manifest import open_manifests

    old = parse_recipe(recipe_dict(tmp_path))
    new = parse_recipe(recipe_dict(tmp_path, data={**recipe_dict(tmp_path)["data"], "cache_gb": 1e-6}))
    assert changes(old, new) == []
    manifest = open_manifests([make_corpus(tmp_path, 4)], old.data, tmp_path, tmp_path / "index")
    caplog.set_level("INFO")
    say_cache(old.data, [manifest])
    assert "decoded once" in caplog.text
    say_cache(new.data, [manifest])
    assert "the rest is decoded in every epoch" in caplog.text
