"""Pages as files: of a run, or of two."""

from importlib import import_module
from pathlib import Path

from remote.files import write_atomic
from trainer.errors import TrainerError

LIBRARIES = ("numpy", "plotly.graph_objects", "rapidfuzz")


def write_page(run: Path, out: Path, other: Path | None = None, usd: float | None = None) -> int:
    """Write the page of a run, or of two runs side by side; returns its size in bytes.

    Raises BadData where there is no run, TrainerError where a library is missing, OSError where it cannot be written.
    """
    _need(LIBRARIES)
    from trainer.report.pair_page import pair_page
    from trainer.report.reading import read_run
    from trainer.report.run_page import run_page

    read = read_run(run, usd)
    page = pair_page(read, read_run(other)) if other else run_page(read)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return len(page)


def _need(libraries: tuple[str, ...]) -> None:
    missing = []
    for name in libraries:
        try:
            import_module(name)
        except ImportError:
            missing.append(name.partition(".")[0])
    if missing:
        names = " and ".join(missing)
        raise TrainerError(f"a report needs {names}, not installed here", f"pip install {' '.join(missing)}")
