"""Pages as files: of a run, or of two."""

from pathlib import Path

from remote.files import write_atomic
from trainer.report.pair_page import pair_page
from trainer.report.reading import read_run
from trainer.report.run_page import run_page


def write_page(run: Path, out: Path, other: Path | None = None, usd: float | None = None) -> int:
    """Write the page of a run, or of two runs side by side; returns its size in bytes.

    Raises BadData where there is no run, TrainerError where plotly is missing, OSError where it cannot be written.
    """
    read = read_run(run, usd)
    page = pair_page(read, read_run(other)) if other else run_page(read)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return len(page)
