"""The loss of every family is what it was, step by step; two commits that train otherwise are told apart."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.curves import STEPS, Curve, curve, first_difference, read_curve, write_curve
from support.families import FAMILIES

ROOT = Path(__file__).parents[2]
CURVES = Path(__file__).parent / "curves"
TOLERANCE = 1e-4  # the kernels of another processor stay within 3e-7 (docs/log.md)


def program(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    bare = {k: v for k, v in os.environ.items() if k != "CI"}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, env={**bare, **env}, timeout=250
    )


def begun(whole: Curve, steps: int) -> Curve:
    return {k: vs[:steps] for k, vs in whole.items()}


def test_there_is_a_curve_of_every_family_and_it_has_every_step() -> None:
    assert {p.stem for p in CURVES.glob("*.json")} == set(FAMILIES)
    for family in FAMILIES:
        found = read_curve(CURVES / f"{family}.json")
        assert "grad_norm" in found
        assert all(len(values) == STEPS for values in found.values())


@pytest.mark.parametrize("family", ["whisper", "parakeet", "tdt"])
def test_the_first_steps_of_a_curve_are_met(family: str, tmp_path: Path) -> None:
    stored = begun(read_curve(CURVES / f"{family}.json"), 8)
    assert not first_difference(stored, curve(family, tmp_path, 8), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_curve_is_met(family: str, tmp_path: Path) -> None:
    stored = read_curve(CURVES / f"{family}.json")
    assert not first_difference(stored, curve(family, tmp_path), TOLERANCE)


def test_the_first_difference_is_named_with_its_step(tmp_path: Path) -> None:
    one = {"loss/ce": [2.0, 1.0, 0.5], "grad_norm": [1.0, 1.0, 1.0]}
    assert not first_difference(one, one)
    other = {**one, "loss/ce": [2.0, 1.001, 0.6]}
    assert first_difference(one, other).startswith("loss/ce at step 2: 1.0 and 1.001")
    assert first_difference(one, other, 0.01).startswith("loss/ce at step 3")
    assert first_difference(one, {**one, "grad_norm": [1.0, float("nan"), 1.0]}, 0.01).startswith("grad_norm at step 2")
    assert "3 steps" in first_difference(one, begun(one, 2))
    assert "loss/kl" in first_difference(one, {"loss/kl": [1.0]})
    write_curve(tmp_path / "a.json", other)
    assert read_curve(tmp_path / "a.json") == other


@pytest.mark.slow
def test_curves_are_not_written_in_ci_nor_of_a_family_that_is_not_there() -> None:
    tool, before = str(CURVES.parent / "write_curves.py"), (CURVES / "whisper.json").read_bytes()
    refused, unknown = program(tool, "whisper", CI="true"), program(tool, "whispr")
    assert (refused.returncode, unknown.returncode) == (2, 2)
    assert "not written in CI" in refused.stderr
    assert "known are whisper" in unknown.stderr
    assert (CURVES / "whisper.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_source_gives_the_same_bits_and_another_optimiser_is_found_out(tmp_path: Path) -> None:
    """A factor on the loss: AdamW hides it from the losses, the norm of the gradient tells it in the first step."""
    for name in ("trainer", "remote"):
        shutil.copytree(ROOT / name, tmp_path / name)
    tool = str(ROOT / "tools" / "same_bits.py")
    same = program(tool, str(tmp_path), "parakeet", "--steps", "3")
    assert (same.returncode, same.stdout) == (0, "parakeet: the same bits in 3 steps\n"), same.stderr
    for name, text, other, says in (
        ("gradient.py", "losses[k].sum() *", "losses[k].sum() * 1.5 *", "grad_norm at step 1:"),
        ("loop.py", "optimiser.set_rates(lr,", "optimiser.set_rates(lr * (1 + 1e-12),", "loss/ctc at step 2:"),
    ):
        file = tmp_path / "trainer" / name
        whole = file.read_text()
        assert text in whole
        file.write_text(whole.replace(text, other))
        differs = program(tool, str(tmp_path), "parakeet", "--steps", "3")
        assert differs.returncode == 1, differs.stderr
        assert differs.stdout.startswith(f"parakeet: {says}")
        file.write_text(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_commit_is_laid_out_and_one_that_is_not_there_is_named() -> None:
    tool = str(ROOT / "tools" / "same_bits.py")
    done = program(tool, "HEAD", "whisper", "--steps", "2")
    assert done.returncode in (0, 1), done.stderr  # what HEAD and the working tree say is not this test's affair
    assert done.stdout.startswith("whisper: ")
    gone = program(tool, "no-such-commit")
    assert gone.returncode == 2
    assert "no-such-commit is no commit here" in gone.stderr
