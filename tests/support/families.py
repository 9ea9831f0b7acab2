"""Every family and kind that can be trained, very small: name → what makes its `train:` section on a corpus."""

from collections.abc import Callable
from functools import partial
from typing import Any

from support.seq2seq import KINDS, seq2seq_dict
from support.speech import ctc_dict, distilled_ctc, distilled_whisper, recipe_dict, tdt_dict

FAMILIES: dict[str, Callable[..., dict[str, Any]]] = {
    "whisper": recipe_dict,
    **{f: lambda corpus, f=f, **s: ctc_dict(corpus, f, **s) for f in ("parakeet", "wav2vec2", "hubert", "wavlm")},
    **{kind: lambda corpus, kind=kind, **s: tdt_dict(corpus, kind, **s) for kind in ("tdt", "rnnt")},
    "distilled-whisper": distilled_whisper,
    "distilled-ctc": distilled_ctc,
    **{kind: partial(seq2seq_dict, kind=kind) for kind in KINDS},
}
SLOW = set(KINDS) - {"speech_to_text", "moonshine"}  # in the quick suite one kind of each way to listen is enough
