"""A trained CTC model as a witness: when each word of a known transcript is said, and how well it fits the sound.

P frames · V vocabulary · T samples (16 kHz)
"""

import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.align import best_path, words_of
from trainer.aligned import Alignment, Spoken
from trainer.apply import Trained, load_trained
from trainer.data.audio import RATE, samples_of
from trainer.data.loader import evaluation_batches, evaluation_cut
from trainer.data.pcm import PcmCache
from trainer.errors import AudioError, BadData
from trainer.losses.labelled import wide
from trainer.pauses import with_pauses
from trainer.recipe.written import Writing, written
from trainer.task import Bad, Batch, Example
from trainer.tasks.ctc import CtcTask, frames_needed
from trainer.tasks.letters import WRITINGS, encoded, lacking

log = logging.getLogger(__name__)

WINDOW_S = 24.0  # heard at once: what models were trained on ends at 20 to 30 s, and attention is quadratic in it
OVERLAP_S = 4.0  # of two windows; half of it is context on each side, more than a word and its neighbours
AT_ONCE = 512  # utterances that are batched by length among each other
SAMPLE = 500  # transcripts that a writing is chosen by


class Aligner:
    """Aligns transcripts with what a CTC model hears, in windows where the sound is long."""

    def __init__(self, trained: Trained, window_s: float = WINDOW_S, overlap_s: float = OVERLAP_S) -> None:
        if not isinstance(trained.task, CtcTask):
            raise BadData(
                f"{trained.name} is a {trained.recipe.task} model, and only CTC says when a word is said",
                "name a CTC model: an export of task ctc, Parakeet-CTC, wav2vec 2.0 with a vocabulary",
            )
        self.trained, self._task = trained, trained.task
        self.writing: Writing = self._task.recipe.model.text
        grid = self._task.frame_samples
        self._window = samples_of(window_s) // grid * grid  # whole frames: those of all windows lie on one grid
        self._step = self._window - samples_of(overlap_s) // (2 * grid) * (2 * grid)

    @property
    def window_s(self) -> float:
        return self._window / RATE

    def choose_writing(self, texts: Sequence[str]) -> Writing:
        """The writing that the vocabulary has letters for: the recipe's own, or one that lacks less of these."""

        def strange(how: Writing) -> int:
            return sum(bool(lacking(self._task.tokenizer, written(t, how))) for t in texts)

        own = self._task.recipe.model.text
        self.writing = min([own, *WRITINGS], key=strange)
        if self.writing != own:
            log.info("transcripts are aligned as %s writes them: the vocabulary lacks letters otherwise", self.writing)
        return self.writing

    def align(self, examples: Iterable[Example]) -> Iterator[Alignment | Bad]:
        """One answer an utterance, in order; a Bad says why there is no alignment."""
        pending: list[Example] = []
        for example in examples:
            pending.append(example)
            if len(pending) == AT_ONCE:
                yield from self._aligned(pending)
                pending = []
        yield from self._aligned(pending)

    def log_probs(self, wave_T: np.ndarray) -> np.ndarray:
        """float32 (P, V) of a sound of any length: windows, each with the frames that lie inside its overlaps."""
        grid, n = self._task.frame_samples, len(wave_T)
        starts = [0]
        while starts[-1] + self._window < n:
            starts.append(starts[-1] + self._step)
        half = (self._window - self._step) // 2 // grid
        parts = []
        for at, start in enumerate(starts):
            item = self._task.item("window", wave_T[start : start + self._window])
            heard_PV = self._heard(self._task.collate([item]))[0]
            first = half if at else 0
            end = len(heard_PV) if at == len(starts) - 1 else self._step // grid + half
            parts.append(heard_PV[first:end])
        return np.concatenate(parts)

    # ---- helpers

    def _aligned(self, examples: Sequence[Example]) -> list[Alignment | Bad]:
        short = [e for e in examples if e.duration_s <= self.window_s]
        answers = dict(self._of_short(short))
        return [answers[e.id] if e.id in answers else self._of_long(e) for e in examples]

    def _of_short(self, examples: Sequence[Example]) -> Iterator[tuple[str, Alignment | Bad]]:
        recipe = self.trained.recipe
        micros = evaluation_cut(self._task, examples, recipe.eval.micro_s or recipe.loop.at_once_s) if examples else []
        for loaded in evaluation_batches(self._task, micros, recipe.data.workers):
            for bad in loaded.bad:
                yield bad.id, bad
            if loaded.micro is None:
                continue
            of_id = {e.id: e for e in loaded.micro.examples}
            batch: Any = loaded.micro.batch
            for b, heard_PV in enumerate(self._heard(batch)):
                wave_T = batch.wave_BT[b, : int(batch.samples_B[b])].numpy()
                yield batch.ids[b], self._answer(of_id[batch.ids[b]], heard_PV, wave_T)

    def _of_long(self, example: Example) -> Alignment | Bad:
        try:
            wave_T = PcmCache(None).read(example.audio, example.start_s, example.duration_s)
        except AudioError as e:
            return Bad(example.id, e.message)
        return self._answer(example, self.log_probs(wave_T), wave_T)

    def _heard(self, batch: Batch) -> list[np.ndarray]:
        """Log-probabilities (P, V) of each utterance of a batch."""
        task, parts, machine = self._task, self.trained.parts, self.trained.machine
        parts.module.eval()
        with torch.inference_mode(), machine.autocast():
            prepared: Any = task.prepare(batch.to(machine.device), parts, False)  # type: ignore[arg-type]
            log_probs_BPV = wide(task.logits(parts.module, prepared)).float().log_softmax(-1).cpu().numpy()
        return [log_probs_BPV[b, :n] for b, n in enumerate(prepared.n_frames)]

    def _answer(self, example: Example, heard_PV: np.ndarray, wave_T: np.ndarray) -> Alignment | Bad:
        words = example.text.split()
        whole = written(example.text, self.writing)
        tokenizer = self._task.tokenizer
        missing = lacking(tokenizer, whole)
        if missing:
            return Bad(example.id, f"the vocabulary lacks {missing!r} of its transcript, as {self.writing} writes it")
        tokens = encoded(tokenizer, whole)
        spoken = [written(w, self.writing).split() for w in words]  # of each word as it stands there: none, one, some
        groups = words_in(tokenizer.convert_ids_to_tokens(tokens))
        if not tokens:
            return Bad(example.id, f"nothing is left of its transcript as {self.writing} writes it")
        if [w for some in spoken for w in some] != whole.split() or len(groups) != len(whole.split()):
            return Bad(example.id, "its words can't be told apart in the tokens of this vocabulary")
        path = best_path(heard_PV, tokens, self._task.blank)
        if path is None:
            n = frames_needed(tokens)
            return Bad(example.id, f"its transcript needs {n} frames, its sound has {len(heard_PV)}")
        frame_s = self._task.frame_samples / RATE
        timed = iter(words_of(path, groups))
        found: list[Spoken] = []
        for word, parts in zip(words, spoken, strict=True):
            mine = [next(timed) for _ in parts]
            if not mine:  # a dash by itself: it has no sound, and stays beside what stands before it
                at = found[-1].end_s if found else 0.0
                found.append(Spoken(word, at, at, 0.0))
                continue
            first, last = mine[0].first, mine[-1].last
            end_s = min((last + 1) * frame_s, example.duration_s)
            found.append(Spoken(word, first * frame_s, end_s, path.score_of(first, last)))
        return Alignment(example.id, path.score, with_pauses(found, wave_T), frame_s, path.frame_scores_P)


def open_aligner(model: Path, sets: Sequence[str] = ()) -> Aligner:
    """A CTC model of a run directory or a model's. Raises BadData, BadRecipe."""
    is_run = (model / "checkpoints").is_dir()
    args = Namespace(run=model if is_run else None, model=None if is_run else model, set=list(sets))
    return Aligner(load_trained(args))


def words_in(tokens: Sequence[str]) -> list[list[int]]:
    """Positions of each word's tokens: `|` or `▁` alone lies between two words, and `▁` begins one."""
    words: list[list[int]] = []
    is_open = False
    for at, token in enumerate(tokens):
        if token in ("|", "▁"):
            is_open = False
            continue
        if not is_open or token.startswith("▁"):
            words.append([])
        words[-1].append(at)
        is_open = True
    return words
