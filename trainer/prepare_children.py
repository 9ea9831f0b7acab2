"""`trainer prepare children`: the competition's files become manifests whose sets share no speaker."""

import contextlib
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.mistakes import Mistake
from trainer.data.archives import archives_in, stem_of, unpack
from trainer.data.children import TEST_NAMES, Row, group_rows, json_lines, read_transcripts
from trainer.data.finder import AudioFinder
from trainer.data.heard import Found, hear_all
from trainer.data.places import data_root
from trainer.data.sounds import noise_of
from trainer.data.split_report import SLACK_S, Line, kind_of, lines_of, told_of
from trainer.data.splits import split, subset
from trainer.errors import BadData, BadRecipe
from trainer.task import Bad

MANIFESTS = ("train", "dev", "test", "dev_small", "long", "quarantine")
LANGUAGE = "en"


@dataclass(frozen=True)
class How:
    """What a person may choose."""

    dev: float = 0.05
    test: float = 0.05
    dev_small: int = 500
    seed: int = 0
    max_s: float = 30.0
    max_bad_share: float = 0.05
    workers: int = 0  # threads that decode; 0: as many as there are processors


def prepare_children(source: str, out: str, unpack_to: str | None, how: How) -> int:
    """Manifests of SOURCE under `out`, all at once. Raises BadData where too much of it can't be used."""
    _check(how)
    folder = Path(source) if Path(source).exists() else data_root() / source
    target = data_root() / out
    if not folder.is_dir():
        raise BadData(f"{folder} is not a folder", "name the one with train_word_transcripts.jsonl and the audio")
    room = data_root() / unpack_to if unpack_to else target / "audio"
    rows, bad = read_transcripts(folder)
    finder = AudioFinder(_folders(folder, room, leave=(target, room, folder / "test")))
    target.mkdir(parents=True, exist_ok=True)
    with _counting(f"of {len(rows)} recordings read") as count:
        heard, unheard = hear_all(rows, finder, how.workers, count)
    bad += unheard
    _refuse_too_many(bad, len(bad) + len(heard), how.max_bad_share, target)
    usable = [r for r in rows if r.id in heard]
    whole = _made(usable, heard, bad, how, target)
    whole |= _submission(folder, room, finder, target, how)
    _publish(target, whole)
    print("\n".join(lines_of(json.loads(whole["split.json"]))))
    return 0


def _check(how: How) -> None:
    """Raises BadRecipe with every option that can't be meant."""
    wrong = [
        Mistake(f"--{name.replace('_', '-')}", f"{getattr(how, name):g} is {what}")
        for name, is_right, what in (
            ("dev", 0 <= how.dev < 1, "no share: 0.05 is a twentieth"),
            ("test", 0 <= how.test < 1, "no share: 0.05 is a twentieth"),
            ("dev_small", how.dev_small >= 0, "no number of utterances"),
            ("max_s", how.max_s > 0, "no length"),
            ("max_bad_share", 0 <= how.max_bad_share <= 1, "no share: 0.05 is a twentieth"),
            ("workers", 0 <= how.workers <= 256, "no number of threads"),
        )
        if not is_right
    ]
    if not wrong and how.dev + how.test >= 1:  # before hours of decoding
        wrong = [Mistake("--dev, --test", f"{how.dev:g} and {how.test:g} leave nothing to train on")]
    if wrong:
        raise BadRecipe(wrong)


def _made(usable: Sequence[Row], heard: Mapping[str, Found], bad: Sequence[Bad], how: How, target: Path) -> Line:
    """Every file's bytes by its name."""
    same: dict[str, list[str]] = defaultdict(list)
    for r in usable:
        same[heard[r.id].sound.sha256].append(r.id)
    grouping = group_rows(usable, [ids for ids in same.values() if len(ids) > 1])
    is_long = {r.id: heard[r.id].sound.duration_s > how.max_s for r in usable}
    counts: dict[str, dict[str, int]] = {g: {} for g in grouping.of.values()}
    for r in usable:
        mine = counts[grouping.of[r.id]]
        mine[r.age] = mine.get(r.age, 0) + (not is_long[r.id])
    made = split(counts, dev=how.dev, test=how.test, seed=how.seed)
    side = {r.id: made.of[grouping.of[r.id]] for r in usable}
    dev = {r.id: (r.age, grouping.of[r.id]) for r in usable if side[r.id] == "dev" and not is_long[r.id]}
    small = set(subset(dev, how.dev_small, how.seed))
    sets: dict[str, list[Line]] = {name: [] for name in MANIFESTS}
    for r in usable:  # in the order of their ids
        line = _line(r, heard[r.id], grouping.of[r.id], target)
        if is_long[r.id]:
            line["meta"]["set"] = side[r.id]  # so that its pieces stay out of train where its speaker does
            sets["long"].append(line)
            continue
        sets[side[r.id]].append(line)
        if r.id in small:
            sets["dev_small"].append(line)
    sets["quarantine"] = [{"id": b.id, "reason": b.reason} for b in sorted(bad, key=lambda b: (b.id, b.reason))]
    files = {f"{name}.jsonl": _lines(found) for name, found in sets.items()}
    n_lies = sum(
        1 for r in usable if r.claimed_s is not None and abs(r.claimed_s - heard[r.id].sound.duration_s) > SLACK_S
    )
    chosen = {k: v for k, v in vars(how).items() if k != "workers"}
    told = told_of(sets, made, grouping, chosen, n_lies, bad)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    told |= {"files": hashes, "sha256": hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}
    return {**files, "split.json": (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()}


def _folders(folder: Path, room: Path, leave: Sequence[Path]) -> list[Path]:
    """Where audio may lie: the source, the folders in it, its archives unpacked, and a folder within each of these.

    An archive with its folder beside it was unpacked by hand.
    """
    out = {p.resolve() for p in leave}

    def within(at: Path) -> list[Path]:
        with os.scandir(at) as entries:  # no look-up a file: there are as many as utterances
            parts = sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
        return [p for p in parts if p.resolve() not in out]

    found = [folder]
    for part in within(folder):
        found += [part, *within(part)]
    for archive in archives_in(folder):
        if (folder / stem_of(archive)).is_dir():
            continue
        with _counting(f"{archive.name}: files unpacked") as count:
            at = unpack(archive, room, count)
        found += [at, *within(at)]
    return found


def _refuse_too_many(bad: Sequence[Bad], total: int, most: float, target: Path) -> None:
    refused = target / "refused.jsonl"
    if len(bad) <= most * total:
        refused.unlink(missing_ok=True)
        return
    _write(refused, _lines([{"id": b.id, "reason": b.reason} for b in bad]))
    counts = "".join(f"\n  {n} × {reason}" for reason, n in Counter(kind_of(b.reason) for b in bad).most_common())
    raise BadData(
        f"{len(bad)} of {total} utterances can't be used ({100 * len(bad) / total:.1f} %), "
        f"--max-bad-share allows {100 * most:g} %{counts}",
        f"{refused} names them; mend them, or raise --max-bad-share if that is what the data is like",
    )


def _line(r: Row, found: Found, group: str, target: Path) -> Line:
    sound = found.sound
    meta: Line = {"age_bucket": r.age, "session": r.session, "group": group, "noise": noise_of(sound.snr_db)}
    line = {
        "id": r.id,
        "audio": _relative(found.path, target),
        "duration_s": sound.duration_s,
        "text": r.text,
        "speaker": r.child,
        "language": LANGUAGE,
        "source": r.source,
        "sha256": sound.sha256,
    }
    meta |= {"snr_db": sound.snr_db} if sound.snr_db is not None else {}
    return {**{k: v for k, v in line.items() if v != ""}, "meta": {k: v for k, v in meta.items() if v != ""}}


def _relative(path: str, target: Path) -> str:
    """As seen from the manifests: both move together, with the volume that they lie on."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(target))


def _submission(folder: Path, room: Path, finder: AudioFinder, target: Path, how: How) -> Line:
    """The test set's manifest in the order of its format file, and that file; nothing where there is none."""
    at = next((f for f in (folder / "test", folder) if all((f / name).is_file() for name in TEST_NAMES)), None)
    if at is None:
        return {}
    if at != folder:
        finder = AudioFinder(_folders(at, room / "test_set", leave=(target, room)))
    metadata, form = (at / name for name in TEST_NAMES)
    known = {str(r["utterance_id"]): r for _, r in json_lines(metadata) if isinstance(r, dict) and "utterance_id" in r}
    wanted = [str(r.get("utterance_id")) for _, r in json_lines(form) if isinstance(r, dict)]
    missing = [i for i in wanted if i not in known]
    if missing:
        raise BadData(
            f"{form} asks for {len(missing)} utterances that {metadata.name} does not have, {missing[0]} among them",
            "fetch both files again: they belong together",
        )
    rows = [
        Row(i, str(known[i].get("audio_path") or f"audio/{i}.flac"), "-", "", "", "", "", None, "", None)
        for i in dict.fromkeys(wanted)
    ]
    with _counting(f"of {len(rows)} recordings of the test set read") as count:
        heard, bad = hear_all(rows, finder, how.workers, count)
    lines = []
    for r in rows:
        found = heard.get(r.id)
        line: Line = {"id": r.id, "audio": _relative(found.path, target) if found else r.audio_path}
        lines.append(
            {**line, "duration_s": found.sound.duration_s, "language": LANGUAGE, "meta": _noise(found)}
            if found
            else line  # its reason is told again by whoever reads it
        )
    for b in bad:
        print(f"! test set: {b.id}: {b.reason}")
    print(f"test set: {len(rows)} utterances, {len(bad)} without usable audio")
    return {"submission.jsonl": _lines(lines), "submission_format.jsonl": form.read_bytes()}


def _noise(found: Found) -> Line:
    return {"noise": noise_of(found.sound.snr_db)}


def _lines(rows: Sequence[Line]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode("utf-8", "surrogatepass")


def _publish(target: Path, files: Mapping[str, bytes]) -> None:
    """All written beside before the first is renamed; split.json goes first and comes last: where it is, all are."""
    try:
        for name, data in files.items():
            _write(target / f".{name}.part", data)
        (target / "split.json").unlink(missing_ok=True)
        for name in ("submission.jsonl", "submission_format.jsonl"):
            if name not in files:
                (target / name).unlink(missing_ok=True)
        for name in [n for n in files if n != "split.json"] + ["split.json"]:
            os.replace(target / f".{name}.part", target / name)
    finally:
        for name in files:
            (target / f".{name}.part").unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def _counting(what: str) -> Iterator[Any]:
    """One live line on a terminal, gone at the end; nothing elsewhere."""
    is_live = sys.stderr.isatty()

    def show(n: int) -> None:
        if is_live and n % 50 == 0:
            print(f"\r{n} {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if is_live:
            print("\r\033[K", end="", file=sys.stderr)
