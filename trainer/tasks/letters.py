"""Tokenizers out of single letters, in the layout of the Hub: nothing to download, plain transformers reads them."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
