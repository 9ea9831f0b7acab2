"""A guide that is run as it is read: its console blocks in order, in a project of its own.

A line that begins with `$ ` is typed; the others are what it prints: each must come, in this order, with `…` for
anything. `^C` is typed once the line before it was printed. `<!-- file: NAME -->` before a block writes it into the
project; `<!-- not run: WHY -->` leaves one out.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|file): (?P<note>.+?) -->\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
CTRL_C = "^C"
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Step:
    """A command, and what it must print; where `interrupt` is a number, Ctrl-C after so many of those lines."""

    command: str
    shown: tuple[str, ...] = ()
    interrupt: int | None = None


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    mark: str = ""  # "", not run, file
    note: str = ""  # why not, or the file's name

    @property
    def is_run(self) -> bool:
        return self.kind == "console" and self.mark != "not run"

    @property
    def steps(self) -> list[Step]:
        return list(_steps(self.text))


def chapters(markdown: str) -> dict[str, list[Block]]:
    """The blocks under each `## ` heading."""
    parts = re.split(r"^## (.+)$", markdown, flags=re.M)
    return {title: list(_blocks(body)) for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def _blocks(markdown: str) -> Iterator[Block]:
    for match in FENCE.finditer(markdown):
        yield Block(match["kind"], match["text"], match["mark"] or "", match["note"] or "")


def _steps(text: str) -> Iterator[Step]:
    command, shown, interrupt = "", [], None
    lines = text.replace("\\\n", "").splitlines()
    for line in [*lines, "$ "]:
        if line.startswith("$ "):
            if command:
                yield Step(command, tuple(shown), interrupt)
            command, shown, interrupt = line[2:].strip(), [], None
        elif line.strip() == CTRL_C:
            interrupt = len(shown)
        elif line.strip():
            shown.append(line.strip())


@dataclass
class Reader:
    """Somebody who types what the guide says, in one folder and one environment."""

    folder: Path
    env: Mapping[str, str]
    said: list[str] = field(default_factory=list)  # everything, for a failure's message

    def read(self, block: Block) -> None:
        """Do what a block says. Raises AssertionError with all that was printed where it does not come so."""
        if block.mark == "file":
            path = self.folder / block.note
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.is_run:
            for step in block.steps:
                self.do(step)

    def do(self, step: Step) -> None:
        self.said.append(f"$ {step.command}\n")
        begun, heard = time.monotonic(), _Ears()
        with subprocess.Popen(
            ["bash", "-c", step.command], cwd=self.folder, env=dict(self.env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            listener = threading.Thread(target=heard.listen, args=(process,), daemon=True)
            listener.start()
            try:
                if step.interrupt is not None:
                    self._wait_for(step.shown[: step.interrupt], heard, process, begun)
                    os.killpg(process.pid, signal.SIGINT)
                process.wait(max(1.0, PATIENCE_S - (time.monotonic() - begun)))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{step.command} did not end:\n{heard.text}\n{self.story}") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                listener.join(10)
        self.said.append(heard.text)
        missing = first_missing(step.shown, heard.text)
        assert missing is None, f"{step.command} did not print {missing!r}:\n{self.story}"
        assert process.returncode == 0, f"{step.command} ended with {process.returncode}:\n{self.story}"

    @property
    def story(self) -> str:
        return "".join(self.said)

    def _wait_for(
        self, shown: tuple[str, ...], heard: "_Ears", process: "subprocess.Popen[bytes]", begun: float
    ) -> None:
        while first_missing(shown, heard.text) is not None:
            assert process.poll() is None, f"it ended by itself:\n{self.story}{heard.text}"
            late = time.monotonic() - begun > PATIENCE_S
            assert not late, f"not printed: {first_missing(shown, heard.text)!r}\n{self.story}{heard.text}"
            time.sleep(0.02)


class _Ears:
    """What a process printed so far."""

    def __init__(self) -> None:
        self._heard: list[bytes] = []

    def listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            self._heard.append(chunk)

    @property
    def text(self) -> str:
        return b"".join(self._heard).decode(errors="replace").replace("\r", "\n")


def first_missing(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line of a guide that was not printed after those before it; None where all were."""
    lines = iter(printed.splitlines())
    for expected in shown:
        if expected == "…":
            continue
        pattern = re.compile(r"\s+".join(".*".join(map(re.escape, w.split("…"))) for w in expected.split()))
        if not any(pattern.search(" ".join(line.split())) for line in lines):
            return expected
    return None
