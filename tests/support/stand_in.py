"""A Python that is quick: what a run asks of the trainer is answered by a few lines, everything else by the real one.

It behaves as the trainer does towards its caller: files, exit codes, standard output.
"""

import json
import sys
import textwrap
from pathlib import Path

ANSWERS = """
import json, os, sys, time
from pathlib import Path

words = sys.argv[1:]
verb, words = words[0], words[1:]
inputs = words[words.index("--") + 1 :] if "--" in words else []
words = words[: words.index("--")] if "--" in words else words
given = {w: v for w, v in zip(words, words[1:]) if w.startswith("--")}
run, out = Path(given["--run"]), Path(given["--out"])
if not list(run.glob("checkpoints/step-*/COMPLETE")):
    sys.exit(f"{run} holds no complete checkpoint")
for name in inputs:
    if not Path(name).exists() and not Path(os.environ["PODCTL_VOLUME"], "data", name).exists():
        print(f"there is no {name}", file=sys.stderr)
        sys.exit(2)
if verb == "predict":
    rows = [json.dumps({"id": name, "text": "two left"}) for name in inputs]
    out.write_text("".join(r + "\\n" for r in rows))
    sys.exit(1 if any("broken" in name for name in inputs) else 0)
time.sleep(float(os.environ.get("TAKES_S", "0")))
print("  all                      WER  25.00 %")
stem = f"evaluate-{time.strftime('%y%m%d-%H%M%S', time.gmtime())}"
told = {"metrics": {"wer": 0.25}, "manifests": inputs, "words": sys.argv[1:]}
(out / f"{stem}.json").write_text(json.dumps(told))
(out / f"{stem}.rows.jsonl").write_text('{"id": "a"}\\n')
(out / "summary.json").write_text(json.dumps({"headline": "WER 25.00 % on a", "metrics": {"wer": 0.25}}))
"""


def quick_python(folder: Path) -> Path:
    """Its path; for PODCTL_PYTHON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.py").write_text(textwrap.dedent(ANSWERS))
    python = folder / "python"
    asked = f'shift 3; exec {sys.executable} {folder}/answers.py "$@"'
    python.write_text(f'#!/bin/sh\nif [ "$1 $2 $3" = "-P -m trainer" ]; then {asked}; fi\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def trained(seconds: str = "0") -> str:
    """A command that leaves a checkpoint and a report, as a training would."""
    report = json.dumps({"headline": "test WER 30.00 %", "metrics": {"test/wer": 0.3}})
    return (
        'mkdir -p "$PODCTL_RUN_DIR/checkpoints/step-00000001" "$PODCTL_RUN_DIR/reports"; '
        'touch "$PODCTL_RUN_DIR/checkpoints/step-00000001/COMPLETE"; '
        f"echo '{report}' > \"$PODCTL_RUN_DIR/reports/summary.json\"; echo trained; sleep {seconds}"
    )
