"""The first experiment file of a project: complete, commented, and able to run as it is."""

import re
from pathlib import Path
from typing import Any

from podctl.errors import BadInput
from podctl.project import Project
from podctl.yamls import read_yaml

FILE = "experiment.yaml"
LOOK_AT_MOST = 200  # files

TEXT = """\
# The first experiment: a tiny Whisper learns eighteen spoken words, from nothing, in a minute or two on two cores.
# It shows that everything is in place. The comments say what to change for speech of your own.
#
#   podctl train --config {file} --dry-run     what would be done, and what it could cost
#   podctl train --config {file} --debug       100 utterances and a few steps: does it work at all?
#   trainer check {file}                       every mistake in this file at once
name: {name}

pod:
{pod}  max_hours: 0.5                  # then the run is saved and stopped; it has no default, since it can cost money
  # secrets: [HF_TOKEN]           # names of what the training needs from .runpod.env; values are never written here

prep:                             # work that needs no GPU; skipped while its outputs are newer than its inputs
  - run: trainer prepare demo --out demo      # makes a corpus by espeak-ng; leave prep out with data of your own
    outputs: [demo/train.jsonl, demo/dev.jsonl, demo/test.jsonl]

train:
  task: whisper
  model:                          # a trained one instead:  {{name: openai/whisper-small, language: en}}
    from_scratch:
      {{d_model: 128, encoder_layers: 1, decoder_layers: 1, heads: 4, ffn: 512, mels: 40, window_s: 3, max_tokens: 40}}
    full_window_share: 0.2        # some utterances are padded to the whole window, as others will serve the model
    attention: eager              # quicker in bf16 on a CPU; leave it out on a GPU
  # adapters: {{r: 16, alpha: 32}}  # LoRA, with a trained model; without this line all of it is trained
  data:                           # JSON Lines below the volume's data/, a row an utterance, as in
    train: [demo/train.jsonl]     #   {{"id": "a1", "audio": "a1.flac", "duration_s": 1.4, "text": "two left"}}
    dev: [demo/dev.jsonl]         # chooses the best model
    test: [demo/test.jsonl]       # used once, with the best model
    max_s: 3                      # longer ones are set aside, and counted
  optim: {{lr: 3.0e-3, schedule: linear, warmup_share: 0.12}}   # a trained model wants 1.0e-5, with adapters 1.0e-4
  loop:
    steps: 500                    # or epochs: 3
    step_utts: 32                 # the step is defined by data
    precision: bf16
    seed: 1
  eval:
    normaliser: basic             # lower case, no punctuation; part of the number, so it has no default
    every_steps: 125
    decode: {{max_new_tokens: 32}}
  log: {{every_steps: 25}}
"""

LOCAL = """\
  provider: local                 # this machine; another that you have:  provider: ssh, ssh: NAME, volume: /FOLDER
"""
SSH = """\
  provider: ssh                   # a machine that you have
  ssh: {ssh}
  volume: {volume}
"""


def first_experiment(project: Project, pod: str = LOCAL) -> str:
    """Its text, for a project without one. `pod`: the lines that say which machine."""
    return TEXT.format(name=_inline(name_of(project)), pod=pod, file=FILE)


def ssh_pod(ssh: str | dict[str, Any], volume: str) -> str:
    """The lines of a pod section for a machine that somebody has already."""
    return SSH.format(ssh=_inline(ssh), volume=_inline(volume))


def name_of(project: Project) -> str:
    """The project's folder as an experiment's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", project.root.name.lower()).strip("-")[:30].strip("-")
    return slug or "first"


def experiments_in(root: Path) -> list[Path]:
    """The experiment files of a project: in its root and below configs/."""
    files = [*sorted(root.glob("*.y*ml")), *sorted((root / "configs").glob("**/*.y*ml"))][:LOOK_AT_MOST]
    return [f for f in files if f.suffix in (".yaml", ".yml") and "pod" in _document(f)]


def names_machine(file: Path, host: str) -> bool:
    """Does this experiment run on that machine?"""
    pod = _document(file).get("pod")
    ssh = pod.get("ssh") if isinstance(pod, dict) else None
    return (ssh.get("host") if isinstance(ssh, dict) else ssh) == host


def _document(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file)[0] if file.is_file() else {}
    except BadInput:
        return {}


def _inline(value: Any) -> str:
    import yaml

    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.strip()[1:-1]
