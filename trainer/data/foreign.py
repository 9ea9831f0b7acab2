"""Others' data as our manifest: NeMo's JSON Lines, lhotse's cuts, Kaldi's folders, data sets in the Hub's layout.

Nothing is copied or decoded: rows point to the audio where it lies. What can't be used is named with its reason.
"""

import csv
import gzip
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.data.parquet import TEXT_COLUMNS, rows_of
from trainer.errors import BadData
from trainer.task import Bad

GROUPS_A_FILE = 1 << 16
Row = dict[str, Any]
Found = Iterator[tuple[str, Row | Bad]]  # of which set (train, dev, …; the file's name where there are none)
READERS: dict[str, Callable[[Path, Mapping[str, str]], Found]] = {}


def read_foreign(kind: str, source: Path, names: Mapping[str, str]) -> Found:
    """Every row, with the name of the set it belongs to. `names`: our field → theirs. Raises BadData."""
    if kind not in READERS:
        raise BadData(f"there is no reader for {kind!r}", f"known are {', '.join(READERS)}")
    if not source.exists():
        raise BadData(f"{source} does not exist", "name a file or a folder of this machine")
    return READERS[kind](source, names)


# ---- NeMo


def _nemo(source: Path, names: Mapping[str, str]) -> Found:
    """`audio_filepath` (relative to the manifest), `text`, `duration`, `offset`, `lang`, `speaker`."""
    files = sorted(source.glob("*.json*")) if source.is_dir() else [source]
    if not files:
        raise BadData(f"{source} holds no manifest (*.json, *.jsonl)", "name the manifest itself")
    for file in files:
        for number, raw, why in _json_lines(file):
            where = f"{file.name}:{number}"
            audio = raw.pop("audio_filepath", raw.pop("audio_file", None)) if raw is not None else None
            if raw is None or not isinstance(audio, str):
                yield file.stem, Bad(where, why or "has no audio_filepath")
                continue
            if _is_sharded(audio, raw):
                yield file.stem, Bad(where, "lies in a tar archive: unpack it, rows must name files")
                continue
            path = os.path.join(file.parent, audio)
            offset_s = float(raw.pop("offset", None) or 0.0)
            row = {
                "id": str(raw.pop("id", raw.pop("utt_id", None)) or f"{Path(audio).stem}-{number}"),
                "audio": os.path.abspath(path),
                "start_s": offset_s,
                "duration_s": raw.pop("duration", None),
                "text": raw.pop(names.get("text", "text"), None),
                "speaker": str(raw.pop("speaker", "") or ""),
                "language": str(raw.pop("lang", raw.pop("target_lang", "")) or ""),
            }
            yield file.stem, {**{k: v for k, v in row.items() if v is not None}, "meta": raw}


def _is_sharded(audio: str, raw: Mapping[str, Any]) -> bool:
    return "shard_id" in raw or audio.endswith(".tar")


# ---- lhotse


def _lhotse(source: Path, names: Mapping[str, str]) -> Found:
    """Cuts in JSON Lines (.jsonl, .jsonl.gz): a row a supervision, its span inside the recording."""
    files = sorted([*source.glob("*cuts*.jsonl"), *source.glob("*cuts*.jsonl.gz")]) if source.is_dir() else [source]
    if not files:
        raise BadData(f"{source} holds no cuts (*cuts*.jsonl, *cuts*.jsonl.gz)", "name the file itself")
    for file in files:
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        for number, cut, why in _json_lines(file):
            if cut is None:
                yield name, Bad(f"{file.name}:{number}", why)
                continue
            for answer in _of_cut(cut, f"{file.name}:{number}", file.parent):
                yield name, answer


def _of_cut(cut: Mapping[str, Any], where: str, folder: Path) -> Iterator[Row | Bad]:
    id = str(cut.get("id") or where)
    if cut.get("type") not in (None, "MonoCut", "MultiCut"):
        yield Bad(id, f"is a {cut['type']}: only MonoCut and MultiCut point into one recording")
        return
    sources = (cut.get("recording") or {}).get("sources") or []
    if len(sources) != 1 or sources[0].get("type") != "file":
        kinds = ", ".join(str(s.get("type")) for s in sources) or "none"
        yield Bad(id, f"its audio is not one file (sources: {kinds})")
        return
    wrong = [t.get("name", "?") for t in cut["recording"].get("transforms") or []]
    if wrong:
        yield Bad(id, f"its audio is transformed on the way ({', '.join(wrong)}): save the cuts' audio first")
        return
    audio = os.path.abspath(os.path.join(folder, sources[0]["source"]))
    supervisions = cut.get("supervisions") or []
    if not supervisions:
        yield Bad(id, "has no supervision, so no transcript")
    for n, s in enumerate(supervisions):
        start_s = float(cut.get("start", 0.0)) + max(0.0, float(s.get("start", 0.0)))
        end_s = float(cut.get("start", 0.0)) + min(float(cut["duration"]), float(s["start"]) + float(s["duration"]))
        yield {
            "id": id if len(supervisions) == 1 else f"{id}-{s.get('id', n)}",
            "audio": audio,
            "start_s": round(start_s, 6),
            "duration_s": round(end_s - start_s, 6),
            "text": s.get("text") or "",
            "speaker": s.get("speaker") or "",
            "language": s.get("language") or "",
            "meta": {**(cut.get("custom") or {}), **(s.get("custom") or {})},
        }


# ---- Kaldi


def _kaldi(source: Path, names: Mapping[str, str]) -> Found:
    """A data folder: wav.scp, text, and where they are there segments, utt2spk, utt2dur, utt2lang."""
    folders = [source] if (source / "wav.scp").is_file() else sorted(p.parent for p in source.glob("*/wav.scp"))
    if not folders:
        raise BadData(f"{source} holds no wav.scp", "name a Kaldi data folder, or the folder of several")
    for folder in folders:
        yield from ((folder.name, answer) for answer in _of_kaldi(folder))


def _of_kaldi(folder: Path) -> Iterator[Row | Bad]:
    waves, texts = _table(folder / "wav.scp"), _table(folder / "text")
    speakers, languages = _table(folder / "utt2spk"), _table(folder / "utt2lang")
    durations = _table(folder / "utt2dur")
    spans = {u: s.split() for u, s in _table(folder / "segments").items()}
    is_cut = (folder / "segments").is_file()
    for utterance in spans if is_cut else waves:
        recording, span = utterance, {}
        if is_cut:
            try:
                recording, first, last = spans[utterance][:3]
                span = {"start_s": float(first), "duration_s": float(last) - float(first)}
            except ValueError:
                yield Bad(utterance, f"its line of segments is not RECORDING START END: {' '.join(spans[utterance])!r}")
                continue
            if float(last) <= float(first):
                yield Bad(utterance, f"its segment ends at {last} s, before it begins at {first} s")
                continue
        elif utterance in durations:
            span = {"duration_s": float(durations[utterance])}
        why_not = _not_a_file(waves.get(recording), recording)
        if why_not:
            yield Bad(utterance, why_not)
            continue
        audio = waves[recording].strip()
        yield {
            "id": utterance,
            "audio": audio if os.path.isabs(audio) else _below(folder, audio),
            **span,
            "text": texts.get(utterance, ""),
            "speaker": speakers.get(utterance, ""),
            "language": languages.get(utterance, ""),
        }


def _not_a_file(audio: str | None, recording: str) -> str:
    if audio is None:
        return f"its recording {recording!r} is not in wav.scp"
    if audio.rstrip().endswith("|"):
        command = shlex.split(audio.rstrip("| "), posix=False)[:1]
        return (
            f"wav.scp pipes it out of {command[0] if command else 'a command'}: no command of a data file is run here"
        )
    if ".ark:" in audio:
        return "wav.scp points into an archive (.ark): extract it, rows must name files"
    return ""


def _below(folder: Path, audio: str) -> str:
    """Kaldi's relative paths are meant from where its recipe ran, often some folders above."""
    for at in (folder, *folder.absolute().parents):
        if (at / audio).exists():
            return os.path.abspath(at / audio)
    return os.path.abspath(folder / audio)


def _table(path: Path) -> dict[str, str]:
    """`KEY rest of the line`; nothing where there is no such file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {p[0]: p[1] if len(p) > 1 else "" for p in pairs}


# ---- Hugging Face


def _hf(source: Path, names: Mapping[str, str]) -> Found:
    """A data set's folder: Parquet files with sound inside, or an audio folder with metadata.csv or .jsonl."""
    files = [source] if source.suffix == ".parquet" else sorted(source.rglob("*.parquet"))
    if files:
        groups: dict[str, int] = {}  # files of each set so far: groups of different files are different groups
        for file in files:
            # train-00000-of-00004.parquet, or a folder a set
            is_named = "-of-" in file.stem or file.parent == source or file == source
            name = file.stem.split("-")[0] if is_named else file.parent.name
            inside = file.relative_to(source) if file != source else Path(file.name)
            rows = rows_of(str(file.absolute()), names, name=inside.with_suffix("").as_posix())
            for row in rows:
                groups[name] = groups.get(name, 0) + int(row["group"] == 0 and row["audio"].endswith("/0"))
                yield name, {**row, "group": (groups[name] - 1) * GROUPS_A_FILE + row["group"]}
        return
    metadata = sorted([*source.rglob("metadata.csv"), *source.rglob("metadata.jsonl")])
    if not metadata:
        what = "a saved data set (*.arrow): write it with to_parquet first" if any(source.rglob("*.arrow")) else source
        raise BadData(f"neither Parquet nor an audio folder with metadata: {what}", "name the data set's folder")
    for file in metadata:
        name = file.parent.name if file.parent != source else "train"
        yield from ((name, answer) for answer in _audio_folder(file, names))


def _audio_folder(file: Path, names: Mapping[str, str]) -> Iterator[Row | Bad]:
    lines: Iterator[tuple[int, dict[str, Any] | None, str]]
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as f:
            lines = iter([(n, dict(row), "") for n, row in enumerate(csv.DictReader(f), start=2)])
    else:
        lines = _json_lines(file)
    for number, raw, why in lines:
        if raw is None or not raw.get("file_name"):
            yield Bad(f"{file.name}:{number}", why or "has no file_name")
            continue
        audio = str(raw.pop("file_name"))
        text = raw.pop(names.get("text") or next((c for c in TEXT_COLUMNS if c in raw), "text"), None)
        row = {k: str(raw.pop(names.get(k, k), "") or "") for k in ("speaker", "language")}
        id = str(raw.pop(names.get("id", "id"), None) or audio)
        yield {"id": id, "audio": os.path.abspath(file.parent / audio), "text": text or "", **row, "meta": raw}


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Line number, the object, and why there is none."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as f:
        try:
            for number, line in enumerate(f, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as e:
                    yield number, None, f"not JSON ({e})"
                    continue
                yield number, value if isinstance(value, dict) else None, "not a JSON object"
        except (OSError, UnicodeDecodeError, EOFError) as e:
            raise BadData(f"{file} can't be read: {e}", "is it whole, and UTF-8?") from None


READERS |= {"nemo": _nemo, "lhotse": _lhotse, "kaldi": _kaldi, "hf": _hf}
