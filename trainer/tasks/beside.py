"""What lies beside a model's weights: its feature extractor, its tokenizer, the processor of both; and its knobs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, MODEL_MAPPING

from trainer.data.audio import RATE
from trainer.errors import BadRecipe
from trainer.tasks import hub

DROPS_LAYERS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "speech_encoder_layerdrop")


class Beside:
    """A processor, or an extractor and a tokenizer that none joins. Raises BadRecipe where one is missing."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.processor: Any = _processor(name, revision)
        if self.processor is not None:
            self.extractor, self.tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        else:
            self.extractor = hub.beside_weights(AutoFeatureExtractor, name, revision)
            self.tokenizer = hub.beside_weights(AutoTokenizer, name, revision)
        if int(self.extractor.sampling_rate) != RATE:
            raise BadRecipe.one(
                "train.model.name", f"{name} hears {self.extractor.sampling_rate} Hz: everything here is {RATE}"
            )

    def save_pretrained(self, directory: str | Path) -> None:
        for what in [self.processor] if self.processor is not None else [self.extractor, self.tokenizer]:
            what.save_pretrained(str(directory))


def steadied(config: Any, dropout: float | None, attention: str) -> str:
    """The configuration as a recipe wants it; returns the attention that it can have.

    No layer is dropped: the chance would be a micro-batch's, and several ranks would wait for the dropped layers.
    """
    kinds = list(_all_of(config))
    for c in kinds:
        for name in DROPS_LAYERS:
            if getattr(c, name, 0):
                setattr(c, name, 0.0)
        if dropout is not None:
            for name in [
                n for n, v in vars(c).items() if ("dropout" in n or n.endswith("_pdrop")) and isinstance(v, float | int)
            ]:
                setattr(c, name, dropout)
    classes = [
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING.get(type(config), None),
        *(MODEL_MAPPING.get(type(c), None) for c in kinds[1:]),
    ]
    has_sdpa = all(getattr(cls, "_supports_sdpa", True) for cls in classes if cls is not None)
    return attention if has_sdpa else "eager"


def _all_of(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for name in ("encoder", "decoder", "encoder_config", "decoder_config"):
        inner = getattr(config, name, None)
        if inner is not None:
            yield inner


def _processor(name: str, revision: str | None) -> Any:
    """Both in one, where the model's files say so."""
    try:
        found = AutoProcessor.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None
    return found if hasattr(found, "feature_extractor") and hasattr(found, "tokenizer") else None
