"""What a stranger should know before using a model: its figures, and all that they depend on.

Every figure is read from the run's own reports (`trainer.results`), none is computed here.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from trainer.card_file import Card
from trainer.parcel import without_places
from trainer.results import RunResults, Told

PEOPLE = "speaker="  # lines of single persons: their range is told, their names are not
WINDOW = 30 * 16_000  # samples that faster-whisper pads to, whatever a model's own window is
LIBRARIES = {"export": "transformers", "adapters": "peft", "ct2": "ctranslate2"}
TOLD = {  # of a recipe, what made the model; where data lies is nobody's business
    "model": ("name", "revision", "from_scratch", "language", "task", "full_window_share"),
    "adapters": None,
    "loop": ("steps", "epochs", "step_utts", "step_s", "precision", "seed"),
    "optim": None,
    "phases": None,
    "averaging": None,
    "augment": None,
}

OWN_WINDOW = """class OwnWindow(WhisperModel):  # its window is shorter than the 30 s that faster-whisper pads to
    def encode(self, features):
        return super().encode(features[..., : self.feature_extractor.nb_max_frames])


"""
FASTER = """import json

import numpy as np
from faster_whisper import WhisperModel, decode_audio
from huggingface_hub import snapshot_download

OWN_WINDOWfolder = snapshot_download("REPO")
model = MODEL(folder)
how = json.load(open(f"{folder}/decode.json"))
wave = decode_audio("sound.wav")
wave = np.pad(wave, (0, max(0, how["pad_to_samples"] - len(wave))))
segments, _ = model.transcribe(wave, **how["transcribe"])
print("".join(s.text for s in segments).strip())
"""


@dataclass(frozen=True)
class Facts:
    """All that a card is made of."""

    repo: str
    what: str  # export, adapters, ct2
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    results: RunResults | None = None
    license: str = ""  # the base's, where it says
    decode: Mapping[str, Any] | None = None  # decode.json of a ct2 export

    @property
    def base(self) -> str:
        """The Hub's name of what it began as; empty where that was a folder, or nothing."""
        name = str((self.recipe.get("model") or {}).get("name") or "")
        return name if is_hub_id(name) else ""

    @property
    def language(self) -> str:
        asked = str((self.recipe.get("model") or {}).get("language") or "")
        return asked if re.fullmatch(r"[a-z]{2,3}", asked) else ""


def is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def make_card(facts: Facts) -> Card:
    """Front matter for the Hub's index, and the page that people read."""
    parts = [_title(facts), *_figures(facts), *_made(facts), *_use(facts), *_limits(facts)]
    return Card(_front(facts), "\n\n".join(parts) + "\n")


def cell(text: object) -> str:
    """Any text as one cell of a table that shows it and does nothing else."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(one_line, quote=False))


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _front(facts: Facts) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if facts.language:
        front["language"] = [facts.language]
    if facts.license:
        front["license"] = facts.license
    front["library_name"] = LIBRARIES[facts.what]
    front["pipeline_tag"] = "automatic-speech-recognition"
    if facts.base:
        front["base_model"] = facts.base
    tags = ["automatic-speech-recognition", str(facts.recipe.get("task") or ""), "podctl"]
    front["tags"] = [*(t for t in tags if t), *(["faster-whisper"] if facts.what == "ct2" else [])]
    told = facts.results.headline if facts.results else None
    if told and "wer" in told.metrics:
        front["model-index"] = [{"name": facts.repo.partition("/")[2], "results": [_indexed(told)]}]
    return front


def _indexed(told: Told) -> dict[str, Any]:
    how = _how(told)
    metrics = [
        {"type": name, "value": round(100 * told.metrics[name], 2), "name": f"{name.upper()} in %, {how}"}
        for name in ("wer", "cer")
        if name in told.metrics
    ]
    sha = str(told.provenance.get("data_sha256", ""))[:16]
    return {
        "task": {"type": "automatic-speech-recognition", "name": "speech recognition"},
        "dataset": {"name": f"{told.set} set, sha256 {sha}", "type": "custom", "split": told.set},
        "metrics": metrics,
    }


def _how(told: Told) -> str:
    p = told.provenance
    return f"{told.what or 'dev'}, normaliser {p.get('normaliser', '')} {str(p.get('normaliser_sha256', ''))[:12]}"


def _title(facts: Facts) -> str:
    of = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base else "fresh or local weights"
    kind = {"export": "", "adapters": " Adapters alone.", "ct2": " Converted for CTranslate2 and faster-whisper."}
    run, commit = facts.provenance.get("run"), str(facts.provenance.get("commit") or "")
    by = f" by run `{_code(run)}`" if run else ""
    code = f", code of commit `{_code(commit)}`" if commit else ""
    changed = " with changes that were not committed" if commit and facts.provenance.get("dirty") else ""
    which = facts.provenance.get("weights")
    weights = f" Weights: {cell(which)}." if which else ""
    name = cell(facts.repo.partition("/")[2])
    return f"# {name}\n\nSpeech recognition, trained{by} from {of}{code}{changed}.{kind[facts.what]}{weights}"


def _figures(facts: Facts) -> list[str]:
    told = facts.results.headline if facts.results else None
    if told is None or facts.results is None:
        return ["## Word error rate\n\nNobody measured this model on the way here."]
    before = facts.results.before
    found = [f"## Word error rate\n\nOn the run's {cell(told.set)} set, {cell(_told_how(told))}:", _table(told, before)]
    others = [t for t in facts.results.test if t is not told and t is not before and t.what != told.what]
    lines = [
        f"- {cell(t.what)}: WER {percent(t.metrics['wer'])}, CER {percent(t.metrics['cer'])}"
        for t in others
        if {"wer", "cer"} <= t.metrics.keys()
    ]
    if lines:
        found.append("The same set, decoded in another way:\n\n" + "\n".join(lines))
    p = told.provenance
    found.append(
        f"WER is pooled over the set: (S + D + I) / N words. Both sides went through the normaliser "
        f"`{_code(p.get('normaliser', '?'))}` (sha256 `{_code(p.get('normaliser_sha256', '?'))}`). Intervals: "
        f"bootstrap over {cell(p.get('interval_over', '?'))}. Decoding: `{_code(_flat(p.get('decode')))}`, computed "
        f"in {cell(p.get('precision', '?'))}. Data of the set: sha256 `{_code(p.get('data_sha256', '?'))}`."
    )
    parity = facts.provenance.get("parity")
    if facts.what == "ct2" and parity:
        found.append(
            f"Through faster-whisper ({cell(facts.provenance.get('quantisation'))}, asked as `decode.json` says) "
            f"{parity['differing']} of {parity['utterances']} texts differ from the model that it was converted from: "
            f"WER {percent(parity['wer_theirs'])}, before conversion {percent(parity['wer_ours'])}."
        )
    elif facts.what == "ct2":
        found.append("After conversion nobody compared what it writes: its own WER is not known.")
    return found


def _told_how(told: Told) -> str:
    return told.what or (f"at step {told.step}" if told.step is not None else "as the recipe decodes")


def _table(told: Told, before: Told | None) -> str:
    earlier = {line["set"]: line for line in before.table} if before else {}
    head = "| set | WER | 95 % interval | before training | CER | S | D | I | N | utterances |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for line in told.table:
        if line["set"].startswith(PEOPLE):
            continue
        old = earlier.get(line["set"])
        spread = f"{percent(line['low'])} – {percent(line['high'])}" if "low" in line else ""
        cells = [cell(line["set"]), percent(line["wer"]), spread, percent(old["wer"]) if old else ""]
        cells += [percent(line["cer"]) if "cer" in line else "", *(str(line[k]) for k in ("S", "D", "I", "N"))]
        lines.append("| " + " | ".join([*cells, str(line["utterances"])]) + " |")
    people = [line["wer"] for line in told.table if line["set"].startswith(PEOPLE)]
    if people:
        lines.append(f"\nBy speaker ({len(people)}): {percent(min(people))} to {percent(max(people))}.")
    return "\n".join(lines)


def _made(facts: Facts) -> list[str]:
    data = facts.provenance.get("data") or {}
    lines = []
    if data.get("train_hours") is not None:
        lines.append(f"- trained on {data['train_hours']:.2f} h, {data['train_utterances']} utterances")
    hashes = data.get("sha256") or {}
    lines += [f"- {cell(name)}: sha256 `{_code(sha)}`" for name, sha in hashes.items() if sha]
    if facts.provenance.get("device"):
        lines.append(f"- on {cell(facts.provenance['device'])}")
    receipt = facts.results.receipt if facts.results else {}
    if receipt.get("duration_s"):
        hours, usd = f"{receipt['duration_s'] / 3600:.2f} h", f"${receipt.get('usd', 0.0):.2f}"
        n = receipt.get("attempts") or 1
        lines.append(
            f"- in {n} attempts, the last of {hours}, for {usd} in all" if n > 1 else f"- in {hours}, for {usd}"
        )
    found = ["## How it was made\n\n" + "\n".join(lines)] if lines else []
    told = {"task": facts.recipe.get("task")}
    for section, keys in TOLD.items():
        value = facts.recipe.get(section)
        if value:
            told[section] = {k: value.get(k) for k in keys} if keys else value
    recipe = yaml.safe_dump(_filled(without_places(told)), sort_keys=False, allow_unicode=True).replace("```", "'''")
    return [*found, f"The recipe (whole in `recipe.json`):\n\n```yaml\n{recipe}```"]


def _use(facts: Facts) -> list[str]:
    repo = facts.repo
    if facts.what == "ct2":
        return ["## How to use it", _use_faster(facts)]
    if facts.what == "adapters":
        code = f'model = PeftModel.from_pretrained(AutoModel.from_pretrained("{facts.base or "BASE"}"), "{repo}")'
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForSpeechSeq2Seq as AutoModel"
        return ["## How to use it", f"```python\n{imports}\n\n{code}\n```"]
    code = f'listen = pipeline("automatic-speech-recognition", model="{repo}")\nprint(listen("sound.wav")["text"])'
    return ["## How to use it", f"```python\nfrom transformers import pipeline\n\n{code}\n```"]


def _use_faster(facts: Facts) -> str:
    short = facts.decode is not None and facts.decode["pad_to_samples"] < WINDOW
    code = FASTER.replace("OWN_WINDOW", OWN_WINDOW if short else "").replace("REPO", facts.repo)
    code = code.replace("MODEL", "OwnWindow" if short else "WhisperModel")
    return (
        "`decode.json` says how to ask it so that it writes what was measured; the zeros behind the sound are part of "
        f"that.\n\n```python\n{code}```"
    )


def _limits(facts: Facts) -> list[str]:
    told = facts.results.headline if facts.results else None
    lines = ["- The figures hold for data like the set above, after the normaliser above; elsewhere: measure again."]
    if told and told.metrics.get("unusable"):
        lines.append(
            f"- {told.metrics['unusable']:.0f} recordings of the set could not be heard; they count as errors."
        )
    if told and told.set == "dev":
        lines.append("- No test set was given: these are figures of the set that chose the weights, and flatter them.")
    if facts.language:
        lines.append(f"- It was asked for `{facts.language}` alone; other languages were not looked at.")
    if not facts.license:
        lines.append("- Its licence is not known here: look at that of what it was trained from, and of the data.")
    return ["## Limits\n\n" + "\n".join(lines)]


def _filled(value: Any) -> Any:
    """Without what says nothing."""
    if not isinstance(value, Mapping):
        return value
    return {k: inner for k, v in value.items() if (inner := _filled(v)) not in (None, {}, [])}


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _code(value: object) -> str:
    """Within backticks."""
    return " ".join(str(value).replace("`", "'").split())
