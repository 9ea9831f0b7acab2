"""Strings for the English normaliser: some know its grammar, some are Unicode at random; a seed has always the same."""

import random
import unicodedata


def _words(text: str) -> list[str]:
    return text.split()


UNITS = _words(
    "zero o oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
POWERS = _words(
    "hundred thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion "
    "decillion"
)
ENDED = _words(
    "first second third fifth ninth twelfth sixes " + " ".join(f"{w}s {w}th {w}h" for w in [*UNITS, *POWERS])
) + [w[:-1] + end for w in TENS for end in ("ies", "ieth")]
BETWEEN = _words(
    "and point double triple per cent percent minus negative plus positive dollars dollar pounds pound euros euro cents"
)
BETWEEN += ["and a half", "and  a half", "and a", "a half"]
FIGURES = _words(
    "0 1 1s 2 7 10 20 007 3rd 21st 2nd 4th 1960s 100 1,000 12,345,678 1,2,3 3.14 5.0 5.50 .5 5. $1 $20 £20 €3.50 ¢7 "
    "$0.07 $2.5 20% 5.5% % $ £x a1b2 7eleven 192.168.0.1 1/2 10-20 ½ ² ٣ ٣.٥ ３ ४२ $-5 -5 +7 #1 1st. 9:30 $0x12"
)
SHORT = _words(
    "won't can't let's ain't y'all wanna gotta gonna i'ma imma woulda coulda shoulda ma'am he's he's been he'd been "
    "she'd gone it's gone he'd done it's done she's got they're i'd we'll don't isn't i've i'm 't 'tis n't Smith's "
    "boys' rock'n'roll i'ma'am been't o'clock"
)
SHORT += [f"he'{s} {w}" for s in "ds" for w in ("been", "gone", "done", "got", "been't")]
TITLES = _words(
    "Mr Mr. Mrs. St St. Dr. Prof. Capt. Gov. ald Gen. Sen. Rep. Pres. Rev. Hon. Asst. assoc. Lt. Col. Jr. Sr esq"
)
FILLERS = _words("um uh hmm mm mhm mmm umm huh uhm m mmmm")
ASIDES = ["[noise]", "<unk>", "(laughs)", "[a (b] c)", "()", "(", "]", "<a [b> c]", "[]", "(two) three", "[x"]
SPELT = _words(
    "colour colours organise mum aeroplane grey cheque tyre realise neighbour centre analysed programme my back hurts "
    "the cat sat on a mat and then"
)
MARKS = [*".,;:!?…—–-'’\"%$£€¢&/+*#@_~^|\\", "...", " '", "''", "\t", "\n", "\u00a0", "\u2009"]
LETTERS = [
    "café",
    "Straße",
    "œuvre",
    "Ærø",
    "naïve",
    "e\u0301",
    "ﬁne",
    "ẞ",
    "İstanbul",
    "ᴭ",
    "Þór",
    "łódź",
    "你好",
    "שָׁלוֹם",
]
KINDS = [
    UNITS,
    UNITS,
    TENS,
    POWERS,
    ENDED,
    BETWEEN,
    BETWEEN,
    FIGURES,
    SHORT,
    TITLES,
    FILLERS,
    ASIDES,
    SPELT,
    MARKS,
    LETTERS,
]


def phrases(n: int, seed: int) -> list[str]:
    """Numbers, money, contractions, titles, hesitations and spellings, in every company."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        kinds = rng.sample(KINDS, rng.randint(1, 4)) if rng.random() < 0.7 else KINDS
        words = [rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 9))]
        words = [w.upper() if rng.random() < 0.05 else w for w in words]
        text = words[0]
        for word in words[1:]:
            text += rng.choices([" ", "", "-", ", ", "  ", "."], [80, 5, 6, 4, 3, 2])[0] + word
        found.append(text)
    return found


def noise(n: int, seed: int) -> list[str]:
    """Any characters at all, those that mean something more often."""
    rng = random.Random(seed)
    pool = "0123456789 .,%$¢€£'()[]<>-abcdmnostu\t\n"
    found = []
    for _ in range(n):
        text = ""
        for _ in range(rng.randint(0, 12)):
            if rng.random() < 0.5:
                text += rng.choice(pool)
            else:
                c = chr(rng.randrange(0x110000 if rng.random() < 0.1 else 0x3000))
                text += "" if unicodedata.category(c) == "Cs" else c  # half a character is none
        found.append(text)
    return found
