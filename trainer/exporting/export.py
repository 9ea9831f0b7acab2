"""`trainer export`: a trained model in another program's format, published only where it writes what ours writes."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote.files import read_json, write_json
from trainer.average import Model
from trainer.errors import BadData, TrainerError
from trainer.exporting.source import check_is_whisper, source_model
from trainer.parity import Parity, difference_lines

Say = Callable[[str], None]
Live = Callable[[str, int, int], None]


def export(args: argparse.Namespace, say: Say, live: Live) -> None:
    """Write `args.out`, which is not there yet, whole or not at all; what fails the gate lies in OUT.refused.

    Raises BadData, and TrainerError where the gate does not hold.
    """
    out: Path = args.out.absolute()
    refused = out.with_name(out.name + ".refused")
    _check_room(out, refused)
    if args.format == "ct2":
        check_is_whisper(args.run, args.model)
    with _room_beside(out) as folder:
        source = source_model(args.run, args.model, Path(folder) / "source")
        beside = Path(folder) / "made"
        if args.format == "hf":
            _copy(source, beside)
        else:
            _converted(args, source, beside, refused, say, live)
        shutil.rmtree(refused, ignore_errors=True)  # of an earlier attempt
        os.rename(beside, out)
    say(f"{out}: {source.name} in the format {args.format}")


def _copy(source: Model, to: Path) -> None:
    if source.path.parent == to.parent:  # made a moment ago
        os.rename(source.path, to)
    else:
        if source.path.resolve() in to.resolve().parents:
            raise BadData(f"--out lies within {source.path}, which is to be copied", "name a folder beside it")
        shutil.copytree(source.path, to)
    if not (to / "provenance.json").exists():
        write_json(to / "provenance.json", {"weights": f"as they lay in {source.path.name}", **source.provenance})


def _converted(args: argparse.Namespace, source: Model, beside: Path, refused: Path, say: Say, live: Live) -> None:
    from trainer.exporting.ct2 import convert, versions
    from trainer.exporting.gate import check_set, compare, open_ours

    ours = open_ours(source.path, args.set)
    manifest = None if args.check == "none" else check_set(ours, args.check, args.utterances)
    convert(source.path, beside, args.quantisation)
    write_json(beside / "decode.json", ours.asking.as_json())
    for name in ("recipe.json", "LICENSE"):
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, beside / name)
    made: dict[str, Any] = {"format": "ct2", "quantisation": args.quantisation, "versions": versions()}
    if manifest is None:
        warning = "not compared with the model that it was made of"
        say(f"warning: {warning}, since --check none was given: its WER is not known")
        _write_provenance(beside, source, {**made, "parity": None, "warning": warning})
        return
    found = compare(ours, beside, manifest, args.quantisation, live)
    limit = args.max_wer_difference
    is_held = found.holds(limit)
    write_json(beside / "parity.json", {"limit": limit, "holds": is_held, **found.as_json()})
    _write_provenance(beside, source, {**made, "parity": {"limit": limit, "holds": is_held, **found.summary}})
    for line in parity_lines(found, args.quantisation):
        say(line)
    if not is_held:
        shutil.rmtree(refused, ignore_errors=True)
        os.rename(beside, refused)
        raise TrainerError(
            f"through faster-whisper this model's WER is {100 * found.wer_theirs:.2f} %, ours is "
            f"{100 * found.wer_ours:.2f} %, more than {100 * limit:g} points apart: nothing was published",
            f"look at {refused / 'parity.json'}; {_next(args.quantisation)}",
        )


def parity_lines(found: Parity, quantisation: str) -> list[str]:
    """What a person reads of the gate."""
    after = sum(d.is_normalised_too for d in found.differing)
    bare = found.more["unpadded"]
    lines = [
        f"{len(found.differing)} of {found.utterances} texts differ, {after} after the normaliser {found.normaliser}; "
        f"WER ours {100 * found.wer_ours:.2f} %, faster-whisper ({quantisation}, computed in "
        f"{found.more['computed_in']['theirs']}) {100 * found.wer_theirs:.2f} %",
        f"with the sound as it is, not padded to the window: {bare['differing']} texts differ, "
        f"WER {100 * bare['wer_theirs']:.2f} % (docs/export.md says why; decode.json says how to ask)",
        *difference_lines(found),
    ]
    if found.empty == found.utterances:
        lines.append("warning: both write nothing at all, so this says little")
    if quantisation == "float32" and found.more["computed_in"]["ours"] == "fp32" and found.differing:
        lines.append("warning: float32 on both sides should write the same: look at these texts")
    return lines


def _next(quantisation: str) -> str:
    if quantisation == "float32":
        return "docs/export.md lists what the two do differently"
    return "--quantisation float32 loses nothing; or allow more: --max-wer-difference"


def _write_provenance(beside: Path, source: Model, made: dict[str, Any]) -> None:
    of = read_json(source.path / "provenance.json") or source.provenance
    write_json(beside / "provenance.json", {**of, **made})


def _check_room(out: Path, refused: Path) -> None:
    if os.path.lexists(out):
        raise BadData(f"{out} is there already", "name a folder that is not")
    if os.path.lexists(refused) and not (refused / "parity.json").is_file():
        raise BadData(f"{refused} is there already, and no export left it", "move it away, or name another --out")


def _room_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    except OSError as e:
        raise BadData(f"{out} can't be made: {e.strerror}", "name a folder elsewhere: --out") from None
