"""Which scripts letters are of, and which a language is written in."""

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

WRITTEN_IN = {  # ISO 639-1, by how the names of Unicode's characters begin
    "LATIN": "af az bs ca cs cy da de en es et eu fi fr ga gl hr hu id is it la lb lt lv ms mt nl no nb nn pl pt ro sk "
    "sl sq sv sw tl tr uz vi yo zu",
    "CYRILLIC": "be bg kk ky mk mn ru tg uk",
    "ARABIC": "ar fa ps ur ug sd",
    "DEVANAGARI": "hi mr ne sa",
    "CYRILLIC LATIN": "sr",
    "GREEK": "el",
    "HEBREW": "he yi",
    "ARMENIAN": "hy",
    "GEORGIAN": "ka",
    "ETHIOPIC": "am ti",
    "BENGALI": "bn as",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "TIBETAN": "bo",
    "CJK": "zh yue",
    "CJK HIRAGANA KATAKANA": "ja",
    "HANGUL CJK": "ko",
}
CALLED = {  # how else languages are called: in English, and by three letters
    "en": "english eng",
    "he": "hebrew heb",
    "de": "german deu ger",
    "fr": "french fra fre",
    "es": "spanish spa",
    "it": "italian ita",
    "pt": "portuguese por",
    "nl": "dutch nld dut",
    "ru": "russian rus",
    "ar": "arabic ara",
    "zh": "chinese mandarin zho chi cmn",
    "ja": "japanese jpn",
    "ko": "korean kor",
    "el": "greek ell gre",
    "hi": "hindi hin",
}
SCRIPTS: Mapping[str, tuple[str, ...]] = {
    language: tuple(scripts.split()) for scripts, languages in WRITTEN_IN.items() for language in languages.split()
}
NAMES = {name: language for language, names in CALLED.items() for name in names.split()}
OF_NO_SCRIPT = ("FEMININE", "MASCULINE", "MICRO", "OHM", "KELVIN", "ANGSTROM")  # letters that are signs


def scripts_in(text: str) -> frozenset[str]:
    """The scripts of its letters, as Unicode names them: LATIN, CYRILLIC, CJK, …"""
    return frozenset(s for s in map(_script, text) if s)


def scripts_of(language: str) -> tuple[str, ...]:
    """What a language is written in; nothing where that is not known. `en`, `en-GB`, `eng` and `English` are one."""
    lower = language.lower().replace("_", "-").split("-")[0].strip()
    return SCRIPTS.get(NAMES.get(lower, lower), ())


@lru_cache(maxsize=20_000)
def _script(c: str) -> str:
    if c < "\x80":
        return "LATIN" if c.isalpha() else ""
    if unicodedata.category(c) not in ("Ll", "Lu", "Lt", "Lo"):  # marks and modifiers go with any script
        return ""
    words = unicodedata.name(c, "UNKNOWN").split()
    first = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") and len(words) > 1 else words[0]
    return "" if first in OF_NO_SCRIPT else first
