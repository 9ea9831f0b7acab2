"""Children-like data in the competition's layout: words are tones, children are pitches, and what is broken is known.

A tiny model can learn it, and every planted fault has its id: what a test asks for, it knows.
"""

import hashlib
import json
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from support.speech import RATE, WORDS

AGES = ("3-4", "5-7", "8-11", "12+", "unknown")
AGE_SHARES = (0.15, 0.3, 0.3, 0.15, 0.1)
NOISES = (0.002, 0.02, 0.08)  # of a session: quiet, some, noisy (standard deviation; a word's peak is 0.3)
WORD_S = 0.2
PARTS = 3  # archives


@dataclass(frozen=True)
class Children:
    """Where it lies, and what was planted: ids in `train_word_transcripts.jsonl`."""

    source: Path  # the folder that `trainer prepare children` takes
    rows: Sequence[Mapping[str, Any]]  # of every transcript file, as written
    said: Mapping[str, str]  # id → what its sound says, whatever its row claims
    truncated: str  # half of its file
    wrong_md5: str  # the row's md5 is another's
    missing: str  # a row without a file
    empty_text: str
    silent: str
    lying_duration: str  # the row says 3 s more; the sound is good
    duplicate: tuple[str, str]  # the same bytes under two ids
    wrong_text: str  # its transcript is another one, of other words
    clipped: str  # driven into its limits
    long: tuple[str, ...]  # over 30 s
    without_child: frozenset[str]  # child_id is null or absent
    test: Mapping[str, str] = field(default_factory=dict)  # the test set: id → what is said, in the format's order

    @property
    def broken(self) -> frozenset[str]:
        """Whatever belongs into quarantine, and nothing else."""
        return frozenset((self.truncated, self.wrong_md5, self.missing, self.empty_text, self.silent))

    def reference(self, folder: Path) -> Path:
        """The test set's truth as a manifest's texts (id, text): what the organisers keep to themselves."""
        path = folder / "truth.jsonl"
        path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in self.test.items()))
        return path


def make_children(
    folder: Path,
    n: int = 300,
    seed: int = 0,
    archives: bool | Sequence[str] = True,
    n_test: int = 20,
    talkbank: int = 0,
    broken: bool = True,
    n_long: int = 3,
) -> Children:
    """`n` utterances of many children under `folder/`, spread over three archives (or folders), and a test set.

    `archives`: True for three .zip, False for folders, or their endings ("zip", "tar", "tar.gz"). `talkbank`: so many
    rows more, in a second transcript file, without children's ids. `broken=False`: nothing planted but long ones.
    """
    rng = np.random.default_rng(seed)
    beside = folder / ".being-made"
    for part in range(PARTS):
        (beside / f"audio_part_{part}" / "audio").mkdir(parents=True)
    speakers = _speakers(max(12, n // 8), rng)
    rows: list[dict[str, Any]] = []
    said: dict[str, str] = {}
    for i in range(n + talkbank):
        of_talkbank = i >= n
        speaker = speakers[int(rng.integers(len(speakers)))]
        session, noise = speaker.sessions[int(rng.integers(len(speaker.sessions)))]
        id = f"tb{int(rng.integers(max(2, talkbank // 4)))}_{i:05d}" if of_talkbank else f"U_{_name(seed, i)}"
        words = [str(w) for w in rng.choice(list(WORDS), size=rng.integers(1, 5))]
        wave_T = _spoken(words, speaker.detune, noise, rng)
        row = _written(beside / f"audio_part_{i % PARTS}" / "audio", id, wave_T, words, speaker.age)
        if of_talkbank:
            row["age_bucket"] = "unknown"
        elif speaker.is_known:
            row |= {"child_id": speaker.name, "session_id": session}
        elif i % 2:
            row |= {"child_id": None, "session_id": session}
        rows.append(row)
        said[id] = row["orthographic_text"]
    planted = _plant(beside, rows[:n], said, rng) if broken else dict.fromkeys(_PLANTED, "")
    long = []
    for i in range(n_long):
        speaker = next(s for s in speakers[i:] if s.is_known)
        words = [str(w) for w in rng.choice(list(WORDS), size=60)]
        wave_T = _spoken(words, speaker.detune, 0.005, rng, pause_every=4)
        id = f"U_long{i}{_name(seed, i)[:6]}"
        row = _written(beside / f"audio_part_{i % PARTS}" / "audio", id, wave_T, words, speaker.age)
        rows.insert(n, {**row, "child_id": speaker.name, "session_id": speaker.sessions[0][0]})
        said[id] = row["orthographic_text"]
        long.append(id)
    n += n_long
    _write(folder / "train_word_transcripts.jsonl", rows[:n])
    if talkbank:
        _write(folder / "talkbank_word_transcripts.jsonl", rows[n:])
    test = _make_test(folder / "test", n_test, speakers, rng, bool(archives)) if n_test else {}
    kinds = ("zip",) * PARTS if archives is True else tuple(archives or ())
    for part in range(PARTS):
        _packed(beside / f"audio_part_{part}", folder, kinds[part] if kinds else "")
    shutil.rmtree(beside)
    duplicate = planted.pop("duplicate", "")
    return Children(
        source=folder,
        rows=rows,
        said=said,
        duplicate=(duplicate, planted.pop("original", "")),
        long=tuple(long),
        without_child=frozenset(r["utterance_id"] for r in rows if not r.get("child_id")),
        test=test,
        **planted,
    )


@dataclass(frozen=True)
class _Speaker:
    name: str
    age: str
    detune: float  # a factor of every pitch
    sessions: Sequence[tuple[str, float]]  # with their noise
    is_known: bool  # its child_id is given


_PLANTED = (
    *("truncated", "wrong_md5", "missing", "empty_text", "silent", "lying_duration", "duplicate", "original"),
    *("wrong_text", "clipped"),
)


def _speakers(n: int, rng: np.random.Generator) -> list[_Speaker]:
    found = []
    for c in range(n):
        age = str(rng.choice(AGES, p=AGE_SHARES))
        names = [f"S{c:04d}-{k}" for k in range(rng.integers(1, 4))]
        if c % 5 == 4:
            names[0] = found[-1].sessions[0][0]  # two children in one session
        sessions = [(name, float(rng.choice(NOISES))) for name in names]
        found.append(_Speaker(f"C{c:04d}", age, float(rng.uniform(0.95, 1.05)), sessions, is_known=c % 6 != 5))
    return found


def _spoken(
    words: Sequence[str], detune: float, noise: float, rng: np.random.Generator, pause_every: int = 0
) -> np.ndarray:
    """A tone a word, a short silence around all of it, and 2 s of it after every so many words; float32 (T,)."""
    t = np.arange(round(WORD_S * RATE)) / RATE
    quiet = np.zeros(round(0.1 * RATE))
    parts = [quiet]
    for k, word in enumerate(words, 1):
        parts.append(0.3 * np.sin(2 * np.pi * WORDS[word] * detune * t))
        if pause_every and k % pause_every == 0:
            parts.append(np.zeros(2 * RATE))
    wave = np.concatenate([*parts, quiet])
    return (wave + rng.normal(0, noise, len(wave))).astype(np.float32)


def _written(folder: Path, id: str, wave_T: np.ndarray, words: Sequence[str], age: str) -> dict[str, Any]:
    sound = BytesIO()
    soundfile.write(sound, wave_T, RATE, format="FLAC", subtype="PCM_16")
    data = sound.getvalue()
    (folder / f"{id}.flac").write_bytes(data)
    return {
        "utterance_id": id,
        "audio_path": f"audio/{id}.flac",
        "audio_duration_sec": round(len(wave_T) / RATE, 3),
        "age_bucket": age,
        "md5_hash": hashlib.md5(data, usedforsecurity=False).hexdigest(),
        "filesize_bytes": len(data),
        "orthographic_text": " ".join(words),
    }


def _plant(
    folder: Path, rows: Sequence[dict[str, Any]], said: dict[str, str], rng: np.random.Generator
) -> dict[str, str]:
    """Breaks some rows of children who are known, and says which."""
    known = [r for r in rows if r.get("child_id")]
    chosen = dict(zip(_PLANTED, (known[int(i)] for i in rng.permutation(len(known))[: len(_PLANTED)]), strict=True))
    at = {r["utterance_id"]: next(folder.glob(f"*/audio/{r['utterance_id']}.flac")) for r in chosen.values()}

    def put(row: dict[str, Any], data: bytes, *, told: bool = True) -> None:
        at[row["utterance_id"]].write_bytes(data)
        if told:
            row |= {"md5_hash": hashlib.md5(data, usedforsecurity=False).hexdigest(), "filesize_bytes": len(data)}

    whole = at[chosen["truncated"]["utterance_id"]].read_bytes()
    put(chosen["truncated"], whole[: len(whole) // 3])
    chosen["wrong_md5"]["md5_hash"] = "0" * 32
    at[chosen["missing"]["utterance_id"]].unlink()
    chosen["empty_text"]["orthographic_text"] = "  "
    put(chosen["silent"], _flac(np.zeros(RATE, np.float32)))
    chosen["silent"]["audio_duration_sec"] = 1.0
    chosen["lying_duration"]["audio_duration_sec"] += 3.0
    original = chosen["original"]
    put(chosen["duplicate"], at[original["utterance_id"]].read_bytes())
    chosen["duplicate"] |= {k: original[k] for k in ("audio_duration_sec", "orthographic_text")}
    said[chosen["duplicate"]["utterance_id"]] = said[original["utterance_id"]]
    wrong = chosen["wrong_text"]
    turn = dict(zip(WORDS, [*list(WORDS)[1:], next(iter(WORDS))], strict=True))
    wrong["orthographic_text"] = " ".join([*(turn[w] for w in wrong["orthographic_text"].split()), "low", "mid"])
    loud = chosen["clipped"]
    wave_T, _ = soundfile.read(at[loud["utterance_id"]], dtype="float32")
    put(loud, _flac(np.clip(12 * wave_T, -1, 1)))
    return {name: str(row["utterance_id"]) for name, row in chosen.items()}


def _make_test(
    folder: Path, n: int, speakers: Sequence[_Speaker], rng: np.random.Generator, packed: bool
) -> dict[str, str]:
    """`utterance_metadata.jsonl` and, in another order, `submission_format.jsonl`; children of its own ages."""
    (folder / "audio").mkdir(parents=True)
    rows, said = [], {}
    for i in range(n):
        speaker = speakers[int(rng.integers(len(speakers)))]
        words = [str(w) for w in rng.choice(list(WORDS), size=rng.integers(1, 5))]
        row = _written(folder / "audio", f"T_{_name('test', i)}", _spoken(words, speaker.detune, 0.02, rng), words, "")
        rows.append({k: v for k, v in row.items() if k not in ("orthographic_text", "age_bucket")})
        said[row["utterance_id"]] = " ".join(words)
    order = sorted(said)
    _write(folder / "utterance_metadata.jsonl", rows)
    _write(folder / "submission_format.jsonl", [{"utterance_id": i, "orthographic_text": ""} for i in order])
    if packed:
        with zipfile.ZipFile(folder / "audio_test.zip", "w") as archive:
            for path in sorted((folder / "audio").iterdir()):
                archive.write(path, f"audio/{path.name}")
        shutil.rmtree(folder / "audio")
    return {i: said[i] for i in order}


def _packed(part: Path, folder: Path, kind: str) -> None:
    files = sorted((part / "audio").iterdir())
    target = folder / f"{part.name}.{kind}"
    if not kind:
        shutil.move(part, folder / part.name)
    elif kind == "zip":
        with zipfile.ZipFile(target, "w") as z:
            for path in files:
                z.write(path, f"audio/{path.name}")
    else:
        with tarfile.open(target, "w:gz" if kind == "tar.gz" else "w") as t:
            for path in files:
                t.add(path, f"audio/{path.name}")


def _flac(wave_T: np.ndarray) -> bytes:
    sound = BytesIO()
    soundfile.write(sound, wave_T, RATE, format="FLAC", subtype="PCM_16")
    return sound.getvalue()


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _name(seed: object, i: int) -> str:
    return hashlib.sha256(f"{seed}/{i}".encode()).hexdigest()[:12]
