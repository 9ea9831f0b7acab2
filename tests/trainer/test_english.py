"""The English normaliser is openai-whisper's, string for string: by facts, beside transformers, beside the package."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.english import KINDS, noise, phrases

from trainer.metrics.english import SPELLINGS, english
from trainer.metrics.english_numbers import figures
from trainer.metrics.normalise import NORMALISERS, Normaliser, normaliser_named

FACTS = json.loads(Path(__file__).with_name("english_facts.json").read_text(encoding="utf-8"))
WORDS = sorted({w for kind in KINDS for w in kind})
REAL = """
import json, sys, types
from importlib.metadata import distribution

package = types.ModuleType("whisper")  # its own __init__ wants torch and numba; its normalisers do not
package.__path__ = [str(distribution("openai-whisper").locate_file("whisper"))]
sys.modules["whisper"] = package
from whisper.normalizers import EnglishTextNormalizer

normalise = EnglishTextNormalizer()
json.dump([normalise(t) for t in json.load(sys.stdin)], sys.stdout)
"""


def test_three_hundred_facts_of_the_package_are_ours() -> None:
    assert len(FACTS) == 300
    wrong = [(text, said, english(text)) for text, said in FACTS if english(text) != said]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Oh my back hurts", "0 my back hurts"),
        ("double oh seven", "007"),
        ("twenty twenty one", "2021"),
        ("£20 million and a half", "£20000000.5"),
        ("Dr. Smith's got ninety-nine point nine percent!", "doctor smith has got 99.9%"),
        ("um, two dollars [coughs] and seven cents", "$2.07"),
    ],
)
def test_it_reads_numbers_titles_and_money(text: str, plain: str) -> None:
    assert english(text) == plain


@pytest.fixture(scope="module")
def theirs() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(json.loads(SPELLINGS.read_text(encoding="utf-8")))


def test_phrases_and_noise_are_those_of_transformers(theirs: Callable[[str], str]) -> None:
    for text in [*phrases(3000, seed=3), *noise(1000, seed=3)]:
        assert english(text) == theirs(text), text


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=20))
@settings(max_examples=500, deadline=None)
def test_whatever_hypothesis_finds_is_that_of_transformers(theirs: Callable[[str], str], text: str) -> None:
    assert english(text) == theirs(text)


def test_every_spelling_of_the_table_is_changed_to_the_american_one(theirs: Callable[[str], str]) -> None:
    for british in json.loads(SPELLINGS.read_text(encoding="utf-8")):
        assert english(f"the {british}!") == theirs(f"the {british}!")


@given(st.lists(st.text("bcdfghijklnpqrtvwxyz", min_size=3, max_size=8), max_size=8))
def test_plain_words_are_left_alone_by_a_second_time(words: list[str]) -> None:
    once = english(" ".join(words))
    assert english(once) == once


def test_a_sign_is_lost_by_a_second_time() -> None:
    assert english("minus five") == "-5"
    assert english("-5") == "5"


def test_a_number_without_end_is_read_or_left_and_no_crash() -> None:
    assert english("9" * 5000) == "9" * 5000
    assert english("nine " * 5000 + "hundred").startswith("999")
    assert english("one million " * 1000)


@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_figures_are_no_more_words_than_there_were(words: list[str]) -> None:
    assert len(figures(words)) <= len(words)


def test_the_hash_is_of_the_rules_and_of_the_table(tmp_path: Path) -> None:
    ours = normaliser_named("english")
    assert ours.apply is english
    changed = tmp_path / "english.json"
    changed.write_bytes(SPELLINGS.read_bytes().replace(b"color", b"kolor", 1))
    others = [
        Normaliser(ours.name, ours.rules, ours.apply, changed),
        Normaliser(ours.name, ours.rules + ".", ours.apply, ours.table),
        *(n for n in NORMALISERS.values() if n is not ours),
    ]
    assert len({n.sha256 for n in (ours, *others)}) == 1 + len(others)
    assert ours.sha256 == Normaliser(ours.name, ours.rules, ours.apply, SPELLINGS).sha256


def test_the_table_lies_beside_its_licence() -> None:
    text = SPELLINGS.with_name("english.LICENSE.txt").read_text(encoding="utf-8")
    assert "openai-whisper" in text
    assert "MIT License" in text
    assert "Copyright (c) 2022 OpenAI" in text


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Path:
    """A Python with openai-whisper, made once and kept in pytest's cache. Skips where pip can't find it."""
    root = request.config.cache.mkdir("clients") / "openai-whisper-20250625"
    python = root / "bin" / "python"
    if not (root / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(root)], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for wanted in (["--no-deps", "openai-whisper==20250625"], ["more-itertools", "regex"]):
            done = subprocess.run([*pip, *wanted], capture_output=True, text=True, timeout=800, check=False)
            if done.returncode:
                pytest.skip(f"pip can't install {wanted[-1]}: {done.stderr.strip().splitlines()[-1:]}")
        (root / "complete").touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_thousand_strings_are_those_of_openai_whisper(real: Path) -> None:
    texts = [*phrases(20_000, seed=1), *noise(10_000, seed=1)]
    done = subprocess.run([real, "-c", REAL], input=json.dumps(texts), capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    wrong = [(t, english(t), s) for t, s in zip(texts, said, strict=True) if english(t) != s]
    assert not wrong, f"{len(wrong)} of {len(texts)}: {wrong[:3]}"
    assert sum(t.lower() != s for t, s in zip(texts, said, strict=True)) > 20_000, "and most were changed"
