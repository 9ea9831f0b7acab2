"""What stands before every transcript and what closes it, as a model's own files say it.

Its decoder's first token, and where the model is asked for a language, that language in the model's own way.
"""

from collections.abc import Mapping
from typing import Any

from trainer.errors import BadRecipe
from trainer.recipe.seq2seq import Seq2SeqModel
from trainer.tasks.letters import encoded


def prompt_of(how: Seq2SeqModel, processor: Any, tokenizer: Any, generation: Any) -> list[int]:
    """Token ids, the decoder's first among them. Raises BadRecipe where the model leaves it open."""
    start = generation.decoder_start_token_id
    if start is None:
        start = generation.bos_token_id
    if how.prompt is not None:
        asked = encoded(tokenizer, how.prompt)
        return asked if start is None or asked[:1] == [start] else [int(start), *asked]
    if start is None:
        raise BadRecipe.one("train.model.prompt", f"is missing: {how.name} says nowhere what its decoder starts with")
    said = _language(how, processor, tokenizer, generation)
    if said[:1] != [start]:
        said = [int(start), *said]
    forced = generation.forced_bos_token_id
    return [*said, int(forced)] if how.language is None and forced not in (None, start) else said


def end_of(how: Seq2SeqModel, tokenizer: Any, generation: Any) -> int:
    """The token that closes a transcript. Raises BadRecipe where there is none."""
    said = generation.eos_token_id
    known = list(said) if isinstance(said, list | tuple) else [said]
    own = tokenizer.eos_token_id
    end = own if own in known else known[0]
    if end is None:
        end = own
    if end is None:
        raise BadRecipe.one("train.model.name", f"{how.name} has no token that closes a transcript (eos_token_id)")
    return int(end)


def _language(how: Seq2SeqModel, processor: Any, tokenizer: Any, generation: Any) -> list[int]:
    """What asks for the language; empty where the model knows one alone."""
    codes: Mapping[str, int] | None = getattr(generation, "text_decoder_lang_to_code_id", None) or getattr(
        tokenizer, "lang_code_to_id", None
    )
    asks = getattr(processor, "get_decoder_prompt_ids", None)
    writes = getattr(processor, "apply_transcription_request", None)
    if how.language is None:
        if codes or asks or writes:
            raise BadRecipe.one(
                "train.model.language", f"is missing: {how.name} is asked for one, say en, he, …, or give model.prompt"
            )
        return []
    try:
        if codes:
            return [int(codes[how.language])]
        if asks:
            return list(asks(how.language))
        if writes:
            return encoded(tokenizer, _written_request(writes, how.language))
    except (KeyError, ValueError, TypeError) as e:
        raise BadRecipe.one(
            "train.model.language", f"{how.language!r} is not one that {how.name} knows: {str(e).splitlines()[0]}"
        ) from None
    raise BadRecipe.one("train.model.language", f"{how.name} is not asked for a language: leave it out")


def _written_request(writes: Any, language: str) -> str:
    """Canary's request is a template of text; the sound in it is not opened."""
    (text,) = writes(["sound.wav"], source_language=language, tokenize=False)
    return str(text)
