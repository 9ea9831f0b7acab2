"""Data sets of the Hub without a copy of them: text and lengths are read first, sound is read as the steps need it.

Which files a set has is asked of the `datasets` library. Rows are indexed like any manifest's, so what a step holds is
the same pure function of seed, epoch and step, on any rank; sound comes row group by row group.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.parquet import rows_of
from trainer.errors import BadData
from trainer.recipe.source import Source

log = logging.getLogger(__name__)

LONG_GB = 1.0  # of sound that has to be read only to know how long it is: worth a word


def files_of(source: Source) -> list[str]:
    """The Parquet files of a set's split: paths, or `hf://` addresses that name the commit. Raises BadData."""
    assert source.hub is not None
    try:
        import datasets
    except ImportError:
        raise BadData("data of the Hub needs the package datasets", "pip install datasets") from None
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(source.hub, source.config, revision=source.revision)
        splits = dict(builder.config.data_files or {})
    except Exception as e:  # of datasets, huggingface_hub, httpx: as many kinds as layers
        raise BadData(
            f"{source.hub} can't be opened: {_first_line(e)}", "check its name, its config, and HF_TOKEN if it is gated"
        ) from None
    if source.split not in splits:
        raise BadData(
            f"{source.hub} has no split {source.split!r}", f"known are {', '.join(map(str, splits)) or 'none'}"
        )
    files = [str(f) for f in splits[source.split]]
    others = [f for f in files if not f.endswith(".parquet")]
    if others:
        raise BadData(
            f"{source.hub} is not made of Parquet files ({Path(others[0]).name})",
            "fetch it, and make a manifest of it: trainer prepare from hf FOLDER --out DIR",
        )
    return files


def identity(files: list[str]) -> list[list[Any]]:
    """What another version of the set would have otherwise: an address names its commit, a file its size and time."""
    found: list[list[Any]] = []
    for file in files:
        stat = None if "://" in file else Path(file).stat()
        found.append([file, stat.st_size if stat else 0, stat.st_mtime_ns if stat else 0])
    return found


def hub_rows(source: Source, files: list[str]) -> Iterator[dict[str, Any]]:
    """Every row as a manifest has it, in the files' order; `group` counts row groups over all files."""
    first = 0
    for file in files:
        last = -1
        for row in rows_of(file, source.columns, name=f"{source.hub}/{Path(file).stem}"):
            last = int(row["group"])
            yield {**row, "group": first + last}
        first += last + 1


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
