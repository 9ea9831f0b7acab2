"""The normaliser that English benchmarks score with: that of openai-whisper 20250625, string for string.

Own code after its behaviour, fuzzed against the package (tests/trainer/test_english.py); the spellings are its table.
Not idempotent: "minus five" is "-5", and "-5" is "5". Text is normalised once, and rows keep it raw.
"""

import json
import re
import unicodedata
from functools import cache
from pathlib import Path

from trainer.metrics.english_numbers import DECIMALS, PLAIN_POWERS, figures

SPELLINGS = Path(__file__).with_name("english.json")  # MIT, see english.LICENSE.txt
ENGLISH_RULES = (
    "as openai-whisper 20250625, EnglishTextNormalizer: lower case; what stands in brackets and um, uh, hmm deleted; "
    "contractions and titles written out; NFKD without marks, symbols to a space; numbers in words to figures; "
    "British to American spelling by english.json; spaces collapsed, not stripped"
)

WHOLE = {  # words that are written out wherever they stand alone
    "won't": "will not",
    "can't": "can not",
    "let's": "let us",
    "ain't": "aint",
    "y'all": "you all",
    "wanna": "want to",
    "gotta": "got to",
    "gonna": "going to",
    "i'ma": "i am going to",
    "imma": "i am going to",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "ma'am": "madam",
}
TITLES = {
    "mr": "mister",
    "mrs": "missus",
    "st": "saint",
    "dr": "doctor",
    "prof": "professor",
    "capt": "captain",
    "gov": "governor",
    "ald": "alderman",
    "gen": "general",
    "sen": "senator",
    "rep": "representative",
    "pres": "president",
    "rev": "reverend",
    "hon": "honorable",
    "asst": "assistant",
    "assoc": "associate",
    "lt": "lieutenant",
    "col": "colonel",
    "jr": "junior",
    "sr": "senior",
    "esq": "esquire",
}
PERFECT = {"d been": "had been", "s been": "has been", "d gone": "had gone", "s gone": "has gone"} | {
    "d done": "had done",  # but not "'s done", which may be "is done"
    "s got": "has got",
}
SHORT = {"re": "are", "s": "is", "d": "would", "ll": "will", "t": "not", "ve": "have", "m": "am"}
WRITTEN_OUT = WHOLE | {short: f"{title} " for short, title in TITLES.items()}

FILLERS = re.compile(r"\b(?:hmm|mhm|mmm|mm|uh|um)\b")
ALONE = re.compile(rf"\b(?:{'|'.join(WRITTEN_OUT)})\b")
HAS_OR_HAD = re.compile(rf"'({'|'.join(PERFECT)})\b")
CONTRACTED = re.compile(rf"'({'|'.join(SHORT)})\b")
LETTER_MEETS_DIGIT = re.compile(r"(?<=[a-z])(?=[0-9])|(?<=[0-9])(?=[a-z])")
ENDING_APART = re.compile(r"(?<=[0-9])\s+(?=(?:st|nd|rd|th|s)\b)")
KEPT = ".%$¢€£"  # they mean something beside figures
LATIN = {"œ": "oe", "ø": "o", "æ": "ae", "đ": "d", "ð": "d", "ł": "l"}  # NFKD leaves them whole
LATIN |= {c.upper(): plain.upper() for c, plain in LATIN.items()} | {"ß": "ss", "ẞ": "SS", "þ": "th", "Þ": "th"}


def english(text: str) -> str:
    """`"Mr. Smith's got twenty-one colours"` → `"mister smith has got 21 colors"`. May begin or end with a space."""
    text = _spoken(text.lower())
    text = re.sub(r"(\d),(\d)", r"\1\2", text)
    text = re.sub(r"\.([^0-9]|$)", r" \1", text)
    text = unicodedata.normalize("NFKD", text).translate(_PLAIN)
    text = _with_cents(" ".join(figures(_halves(text).split())))
    text = " ".join(_spellings().get(word, word) for word in text.split())
    text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
    text = re.sub(r"([^0-9])%", r"\1 ", text)
    return re.sub(r"\s+", " ", text)


def _spoken(text: str) -> str:
    """What was said, written out: no stage directions, no hesitation, no contraction."""
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)
    text = re.sub(r"\([^)]+\)", "", text)
    text = FILLERS.sub("", text)
    text = re.sub(r"\s+'", "'", text)
    text = ALONE.sub(lambda m: WRITTEN_OUT[m[0]], text)
    text = HAS_OR_HAD.sub(lambda m: " " + PERFECT[m[1]], text)
    text = re.sub(r"n't\b", " not", text)  # first: it parts what stands before it from what follows
    return CONTRACTED.sub(lambda m: " " + SHORT[m[1]], text)


def _halves(text: str) -> str:
    """ "two and a half" is "two point five"; figures and letters that touch are parted, but for 3rd and 1960s."""
    *heads, tail = re.split(r"\band\s+a\s+half\b", text)
    parts = []
    for head in heads:
        if words := head.split():
            is_number = words[-1] in DECIMALS or words[-1] in PLAIN_POWERS
            parts += [head, "point five" if is_number else "and a half"]
    text = " ".join([*parts, tail])
    return ENDING_APART.sub("", LETTER_MEETS_DIGIT.sub(" ", text))


def _with_cents(text: str) -> str:
    """ "$2 and ¢7" is "$2.07", "$0.07" is "¢7", and 1 is a word."""
    text = re.sub(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", text)
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)


@cache
def _spellings() -> dict[str, str]:
    """British to American, 1,700 words; read when it is first asked for."""
    found: dict[str, str] = json.loads(SPELLINGS.read_text(encoding="utf-8"))
    return found


class _Plain(dict[int, str]):
    """What becomes of a character, found out once each."""

    def __missing__(self, code: int) -> str:
        c = chr(code)
        kind = unicodedata.category(c)
        if c in KEPT:
            plain = c
        elif c in LATIN:
            plain = LATIN[c]
        else:
            plain = "" if kind == "Mn" else " " if kind[0] in "MSP" else c
        self[code] = plain
        return plain


_PLAIN = _Plain()
