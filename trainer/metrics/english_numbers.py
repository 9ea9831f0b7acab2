"""Numbers in words to figures, as Whisper's English normaliser reads them: "twenty one" is 21, "one oh one" is 101.

What it says is a convention that scores are compared by, not arithmetic: "nine ninth" is "9 ninth", and a point
before "hundred" is dropped. Such oddities are kept, since published numbers hold them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def _words(text: str) -> list[str]:
    return text.split()


UNITS = _words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
POWERS = {"hundred": 2, "thousand": 3} | {
    f"{stem}illion": 3 * n + 6
    for n, stem in enumerate(_words("m b tr quadr quint sext sept oct non dec"))  # 10^6 to 10^33
}
ODD_ORDINALS = {"first": "1st", "second": "2nd", "third": "3rd", "fifth": "5th", "twelfth": "12th", "zeroth": "0th"}
SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
UNITS_OF_MONEY = {"pound": "£", "euro": "€", "dollar": "$", "cent": "¢"}
MONEY = UNITS_OF_MONEY | {f"{name}s": sign for name, sign in UNITS_OF_MONEY.items()}
REPEATS = {"double": 2, "triple": 3}

LONGEST = 4000  # digits of a number that is still read: Python turns no more than 4300 into text
NUMERAL = re.compile(r"([£€$¢]?)(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Count:
    """A word that counts: how it joins a number, its value, and what an ordinal or plural ends with."""

    kind: Literal["zero", "unit", "ten", "power"]
    value: int
    ending: str = ""


def _counts() -> dict[str, Count]:
    words: dict[str, Count] = {name: Count("zero", 0) for name in ("o", "oh", "zero")}
    for value, name in enumerate(UNITS, start=1):
        words[name] = Count("unit", value)
        words["sixes" if name == "six" else f"{name}s"] = Count("unit", value, "s")
        if value > 3 and value not in (5, 12):
            words[name + ("h" if name.endswith("t") else "th")] = Count("unit", value, "th")  # "nineth", not "ninth"
    for name, figures in ODD_ORDINALS.items():
        words[name] = Count("unit", int(figures[:-2]), figures[-2:])
    for value, name in enumerate(TENS, start=2):
        words[name] = Count("ten", 10 * value)
        words[f"{name[:-1]}ies"] = Count("ten", 10 * value, "s")
        words[f"{name[:-1]}ieth"] = Count("ten", 10 * value, "th")
    for name, zeros in POWERS.items():
        words |= {name + ending: Count("power", 10**zeros, ending) for ending in ("", "s", "th")}
    return words


COUNTS = _counts()
KNOWN = {*COUNTS, *SIGNS, *MONEY, *REPEATS, "per", "percent", "and", "point"}
PLAIN_UNITS = frozenset(w for w, c in COUNTS.items() if c.kind == "unit" and not c.ending)
PLAIN_TENS = frozenset(w for w, c in COUNTS.items() if c.kind == "ten" and not c.ending)
PLAIN_POWERS = frozenset(w for w, c in COUNTS.items() if c.kind == "power" and not c.ending)
ZEROS = frozenset(w for w, c in COUNTS.items() if c.kind == "zero")
DECIMALS = PLAIN_UNITS | PLAIN_TENS | ZEROS  # what may follow a point


def figures(words: Sequence[str]) -> list[str]:
    """The same words, numbers among them in figures: at most as many, usually fewer."""
    reader = _Reader()
    at = 0
    while at < len(words):
        before = words[at - 1] if at else ""
        after = words[at + 1] if at + 1 < len(words) else ""
        at += reader.read(before, words[at], after)
    reader.close()
    return reader.said


class _Reader:
    """Words go in, figures come out; in between a number is open, to which the next word may add.

    An open number is an int where it was counted up, a str where figures were put side by side.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self.number: int | str | None = None
        self.sign = ""  # stands before whatever is said next

    def read(self, before: str, word: str, after: str) -> int:
        """How many words were used: one, or two."""
        numeral = NUMERAL.fullmatch(word)
        if numeral and len(word) <= LONGEST:
            self._numeral(word, numeral[1], numeral[2])
        elif word in COUNTS:
            self._count(before, COUNTS[word])
        elif word in SIGNS:
            self.close()
            if _goes_on(after):
                self.sign = SIGNS[word]
            else:
                self.say(word)
        elif word in MONEY and self.number is not None:
            self.sign = MONEY[word]
            self.close()
        elif word == "percent" and self.number is not None:
            self.say(f"{self.number}%")
        elif word == "per" and after == "cent" and self.number is not None:
            self.say(f"{self.number}%")
            return 2
        elif word in REPEATS and (after in PLAIN_UNITS or after in ZEROS):
            self.number = self._written() + str(COUNTS[after].value) * REPEATS[word]
            return 2
        elif word == "and" and before in PLAIN_POWERS and _goes_on(after):
            pass  # "two hundred and five" is one number
        elif word == "point" and _goes_on(after):
            if after in DECIMALS or _is_numeral(after):
                self.number = self._written() + "."
        else:
            self.close()
            self.say(word)
        return 1

    def say(self, text: str) -> None:
        self.said.append(self.sign + text)
        self.number, self.sign = None, ""

    def close(self) -> None:
        if self.number is not None:
            self.say(str(self.number))

    def _numeral(self, word: str, sign: str, digits: str) -> None:
        if isinstance(self.number, str) and self.number.endswith("."):
            self.number += word  # of a decimal fraction, or an address
            return
        self.close()
        self.sign = sign or self.sign
        whole, _, fraction = digits.partition(".")
        self.number = digits if fraction and int(fraction) else int(whole)

    def _count(self, before: str, count: Count) -> None:
        if count.kind == "power":
            self._multiply(count.value)
        elif count.kind == "zero":
            self.number = self._written() + "0"
        else:
            self.number = _joined(self.number, count, before)
        if count.ending:
            self.say(f"{self.number}{count.ending}")

    def _multiply(self, power: int) -> None:
        n = self.number
        if n is None:
            self.number = power
        elif isinstance(n, int):
            self.number = n - n % 1000 + n % 1000 * power  # "two million three hundred": only what came last is raised
        else:
            raised = _product(n, power)
            if raised is None:
                self.close()
            self.number = power if raised is None else raised

    def _written(self) -> str:
        """The open number as figures are put behind it; a nought in front is nothing."""
        return str(self.number or "")


def _joined(number: int | str | None, count: Count, before: str) -> int | str:
    """A number and a word from 0 to 90 behind it: added where there is room, else put side by side."""
    if number is None:
        return count.value
    if count.kind == "unit" and (isinstance(number, str) or before in PLAIN_UNITS):
        digit_for_nought = before in PLAIN_TENS and count.value < 10
        return f"{str(number)[:-1] if digit_for_nought else number}{count.value}"
    room = 10 if count.kind == "unit" and count.value < 10 else 100
    if isinstance(number, int) and number % room == 0:
        return number + count.value
    return f"{number}{count.value}"


def _product(figures: str, power: int) -> int | None:
    """ "2.5" times a thousand is 2500; None where that is no whole number, or this no number."""
    parts = re.fullmatch(r"(\d*)\.?(\d*)", figures)
    if parts is None or figures == "." or len(figures) > LONGEST:
        return None
    product, rest = divmod(int(parts[1] + parts[2]) * power, 10 ** len(parts[2]))
    return None if rest else product


def _goes_on(after: str) -> bool:
    """A number may begin, or go on, with the next word."""
    return after in KNOWN or _is_numeral(after)


def _is_numeral(word: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", word) is not None
