"""What is odd about a transcript: what no person said, or no other transcript here looks like."""

import re
import unicodedata
from collections.abc import Collection

from trainer.audit.scripts import scripts_in

REPEATED_LETTERS = 4  # of one kind in a row: no language here writes three alike more than once in a blue moon
REPEATED_WORDS = 5  # in a row: children say "no no no no", a transcriber who falls asleep goes on
CAPITALS_AT_LEAST = 4  # letters: TV and USA are words, not a way of writing

# CHAT (MacWhinney, The CHILDES Project; TalkBank's manual): what is not a word a person said
CHAT = re.compile(
    r"(?<!\w)(?:xxx|yyy|www)(?!\w)"  # unintelligible, phonologically coded, untranscribed
    r"|(?<!\w)&[=+~\-]?\w"  # events (&=laughs), fragments (&+fr), fillers (&-um), nonwords (&~gaga)
    r"|(?<!\w)0[^\W\d]"  # omitted words (0is)
    r"|\w@[a-z]"  # special forms (woof@o)
    r"|\+[./!?,\"<^+]"  # how an utterance ends or begins (+..., +//., +<)
    r"|^[*%@]\w{2,}:"  # a tier's name (*CHI:)
    r"|\[[^\]]*\]|<[^>]*>"  # scoped marks ([/], [: word], [laughter], <unk>)
    r"|\((?:[^)]{3,}|\.+)\)"  # (laughs), pauses (..); (be)cause keeps its short brackets, which are odd all the same
    r"|\(\("  # ((unsure)) of other conventions
)
SIGNS = ("Sc", "Sm", "So")  # money, mathematics, pictures
CONTROLS = ("Cc", "Cf", "Co", "Cs", "Cn")
JOINERS = "\u200c\u200d"  # part of how Persian, Hindi and others are written
BRACKETS = "()[]{}<>⟨⟩«»"
SYMBOLS = "@#$%^&*_=+|\\/~`§°^¬¦•→←"


def odd_in(text: str, capitals_are_odd: bool = True) -> list[str]:
    """What is odd about a transcript, in words; nothing where it is as people speak.

    `capitals_are_odd`: not where the whole corpus is written in them.
    """
    found = []
    if CHAT.search(text):
        found.append("annotation")
    if any(c.isdigit() for c in text):
        found.append("digits")
    if any(c in BRACKETS for c in text):
        found.append("brackets")
    if any(c in SYMBOLS or (unicodedata.category(c) in SIGNS and c not in BRACKETS) for c in text):
        found.append("symbols")
    if any(unicodedata.category(c) in CONTROLS and c not in "\t\n\r" and c not in JOINERS for c in text):
        found.append("control characters")
    if re.search(rf"([^\W\d_])\1{{{REPEATED_LETTERS - 1}}}", text.lower()):
        found.append("repeated letters")
    if re.search(rf"(?<!\w)(\w+)(?:\W+\1){{{REPEATED_WORDS - 1}}}(?!\w)", text.lower()):
        found.append("repeated words")
    if capitals_are_odd and is_capitals(text):
        found.append("capitals")
    if any(len(scripts_in(word)) > 1 and not _is_japanese(scripts_in(word)) for word in text.split()):
        found.append("two scripts in a word")
    return found


def is_capitals(text: str) -> bool:
    """Whether every letter that could be small is a capital, and there are enough of them to tell."""
    cased = [c for c in text if c.lower() != c.upper()]
    return len(cased) >= CAPITALS_AT_LEAST and all(c == c.upper() for c in cased)


def foreign_scripts(text: str, allowed: Collection[str]) -> list[str]:
    """Scripts of its letters that are not among the allowed, sorted; none where nothing is known of what is."""
    return sorted(scripts_in(text) - set(allowed)) if allowed else []


def _is_japanese(scripts: frozenset[str]) -> bool:
    return scripts <= {"CJK", "HIRAGANA", "KATAKANA"}
