"""What an audit may say of an utterance: the names that a recipe's `drop` knows."""

from collections.abc import Mapping

FLAGS: Mapping[str, str] = {
    "duplicate_sound": "the same decoded samples stand under an earlier id",
    "in_other_set": "its sound or its id stands in a manifest that it must not meet, as dev or test",
    "unreadable": "its sound can't be found or decoded, or ends before it should",
    "silent": "nothing in it is loud enough to be speech",
    "clipped": "much of it stands at full scale",
    "no_text": "its transcript is empty",
    "fast": "more characters a second than its sound can hold, or than others of its age have",
    "slow": "hardly any characters for so much sound, or far fewer than others of its age have",
    "odd_text": "digits, brackets, symbols, control characters, an annotation, capitals throughout, something repeated",
    "script": "letters of another script than its language is written in",
    "long_text": "a very long transcript",
    "disagrees": "a first model heard something else, by words and by characters",
}
