"""Tokenizers out of single letters, in the layout of the Hub: nothing to download, plain transformers reads them."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from trainer.errors import BadRecipe
from trainer.recipe.written import Writing, written

WRITINGS: tuple[Writing, ...] = get_args(Writing)


def wave_letters(letters: Sequence[str]) -> Any:
    """As wav2vec 2.0, HuBERT and WavLM have it: <pad> is the blank, | the space between words."""
    from transformers import Wav2Vec2CTCTokenizer

    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *(c for c in letters if c != "|")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(path))


def parakeet_letters(letters: Sequence[str], *, transducer: bool = False) -> Any:
    """As Parakeet has it: ▁ is the space, the last token the blank, which CTC calls <pad> and a transducer <blank>."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import Metaspace as Joined
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import ParakeetTokenizer

    last = ["<pad>", "<blank>"] if transducer else ["<pad>"]
    tokens = ["<unk>", "▁", *(c for c in letters if c != "▁"), *last]
    backend = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
    backend.decoder = Joined(prepend_scheme="never", split=False)
    more = {"extra_special_tokens": ["<blank>"]} if transducer else {}
    return ParakeetTokenizer(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", **more)


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text and nothing around them. Several threads may ask at once."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # tokenizer(…) would set its padding, which two threads can't
        return list(backend.encode(text, add_special_tokens=False).ids)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def lacking(tokenizer: Any, text: str) -> str:
    """Which characters of a text the vocabulary has no token for, each once; empty where it has all."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in encoded(tokenizer, text):
        return ""
    return "".join(sorted(c for c in set(text) if unknown in encoded(tokenizer, c)))


class Strangers:
    """Keeps count of transcripts whose letters a vocabulary lacks, and gives up where that is the rule.

    One such transcript is quarantined; when most are, the recipe is wrong (small letters for a model of capitals), and
    a training that quarantines everything would end as it began.
    """

    AT_LEAST = 20

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._seen = self._strange = 0

    def missing(self, text: str, how: Writing) -> str:
        """The characters of a transcript that the vocabulary lacks. Raises BadRecipe once most transcripts have any."""
        found = lacking(self._tokenizer, written(text, how))
        self._seen += 1
        if found:
            self._strange += 1
            if self._strange >= self.AT_LEAST and 2 * self._strange > self._seen:
                better = [w for w in WRITINGS if not lacking(self._tokenizer, written(text, w))]
                say = f"say {better[0]}" if better else "say vocabulary: transcripts beside it"
                raise BadRecipe.one(
                    "train.model.text",
                    f"{self._strange} of the first {self._seen} transcripts hold what the vocabulary lacks "
                    f"({found!r}), as {how} writes them: {say}",
                )
        return found
