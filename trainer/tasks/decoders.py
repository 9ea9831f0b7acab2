"""Decoders of speech models in transformers: what they make of all tokens at once, before the head over the vocabulary.

The head is apart, so that labelled positions alone reach it. Masks come ready made: nothing waits for the device.

B batch · L tokens · P encoder positions · D model width · K labelled positions · V vocabulary
"""

from typing import Any, ClassVar

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from trainer.tasks.masks import looking_at, looking_back

HEADS = ("lm_head", "cls", "output_projection")  # of a speech-encoder-decoder's decoder, as its class names it


class Decoder:
    """Of models with `model.decoder` and a head beside it."""

    masks_inputs: ClassVar[bool] = False  # generation is told which inputs are own; else the encoder's outputs say it

    def __init__(self, head: str = "proj_out") -> None:
        self._head = head

    def most_tokens(self, config: Any) -> int:
        return int(config.max_position_embeddings)

    def hidden(self, model: Any, input_BL: Tensor, states_BPD: Tensor, own_BP: Tensor) -> Tensor:
        """(B, L, D)."""
        return self._passed(model.model.decoder, input_BL, states_BPD, own_BP)

    def logits(self, model: Any, hidden_KD: Tensor) -> Tensor:
        """(K, V)."""
        made: Tensor = getattr(model, self._head)(hidden_KD)
        return made

    def _passed(self, decoder: Any, input_BL: Tensor, states_BPD: Tensor, own_BP: Tensor, **more: Any) -> Tensor:
        n, length = input_BL.shape
        dtype, config = states_BPD.dtype, decoder.config
        made: Tensor = decoder(
            input_ids=input_BL,
            attention_mask=looking_back(n, length, config, dtype, input_BL.device),
            encoder_hidden_states=states_BPD,
            encoder_attention_mask=looking_at(own_BP, length, config, dtype),
            use_cache=False,
            **more,
        ).last_hidden_state
        return made


class Speech2TextDecoder(Decoder):
    masks_inputs = True

    def most_tokens(self, config: Any) -> int:
        return int(config.max_target_positions)


class StreamingDecoder(Decoder):
    def hidden(self, model: Any, input_BL: Tensor, states_BPD: Tensor, own_BP: Tensor) -> Tensor:
        # it adds positions to the encoder's states where they lie (transformers 5.23): a copy is its own
        return super().hidden(model, input_BL, states_BPD.clone(), own_BP)


class CanaryDecoder(Decoder):
    def most_tokens(self, config: Any) -> int:
        return int(config.decoder_config.max_position_embeddings)


class SeamlessDecoder(Decoder):
    masks_inputs = True

    def hidden(self, model: Any, input_BL: Tensor, states_BPD: Tensor, own_BP: Tensor) -> Tensor:
        return self._passed(model.text_decoder, input_BL, states_BPD, own_BP)


class SpeechT5Decoder(Decoder):
    masks_inputs = True

    def most_tokens(self, config: Any) -> int:
        return int(config.max_text_positions)

    def hidden(self, model: Any, input_BL: Tensor, states_BPD: Tensor, own_BP: Tensor) -> Tensor:
        decoder, (n, length) = model.speecht5.decoder, input_BL.shape
        x_BLD, _ = decoder.prenet(input_BL)
        config, dtype = decoder.wrapped_decoder.config, x_BLD.dtype
        made: Tensor = decoder.wrapped_decoder(
            hidden_states=x_BLD,
            attention_mask=looking_back(n, length, config, dtype, input_BL.device),
            encoder_hidden_states=states_BPD,
            encoder_attention_mask=looking_at(own_BP, length, config, dtype),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        return made


class AnyDecoder(Decoder):
    """Of a speech-encoder-decoder: BERT, GPT-2, (m)BART, … with cross-attention, and maybe a projection before it."""

    masks_inputs = True

    def most_tokens(self, config: Any) -> int:
        return int(config.decoder.max_position_embeddings)

    def hidden(self, model: Any, input_BL: Tensor, states_BPD: Tensor, own_BP: Tensor) -> Tensor:
        decoder = model.decoder
        if hasattr(model, "enc_to_dec_proj"):
            states_BPD = model.enc_to_dec_proj(states_BPD)
        if not head_of(decoder):  # what it says of all positions then: nobody knows where its head begins
            return self._passed(_Whole(decoder), input_BL, states_BPD, own_BP)
        return self._passed(getattr(decoder, decoder.base_model_prefix), input_BL, states_BPD, own_BP)

    def logits(self, model: Any, hidden_KD: Tensor) -> Tensor:
        head = head_of(model.decoder)
        made: Tensor = getattr(model.decoder, head)(hidden_KD) if head else hidden_KD
        return made


class _Whole:
    """A language model whose logits are what comes out."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def __call__(self, **inputs: Any) -> Any:
        return BaseModelOutput(last_hidden_state=self.model(**inputs).logits)


def head_of(decoder: Any) -> str:
    """The name of a causal language model's head; empty where it has none that is known."""
    return next((name for name in HEADS if hasattr(decoder, name)), "")
