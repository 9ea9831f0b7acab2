"""Checkpoints: whole or not there, kept by rule, one writer."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from remote.fence import Fence, Superseded, take_epoch
from trainer.checkpoint import (
    complete_checkpoints,
    latest_checkpoint,
    prune,
    save_checkpoint,
    verify,
)
from trainer.errors import BadCheckpoint, NoSpace


def write(text: str, size: int = 10):
    def into(directory: Path) -> None:
        (directory / "model" / "weights").write_text(text * size)
        (directory / "state" / "state.json").write_text("{}")

    return into


def fence(tmp_path: Path) -> Fence:
    return Fence(tmp_path / "writer", take_epoch(tmp_path / "writer"))


def wer(metrics: dict[str, float]) -> float:
    return metrics["wer"]


def test_the_newest_complete_one_is_the_latest(tmp_path: Path) -> None:
    f = fence(tmp_path)
    assert latest_checkpoint(tmp_path / "c") is None
    for step in (5, 10):
        save_checkpoint(tmp_path / "c", step, write("a"), f)
    (tmp_path / "c" / "step-00000015" / "model").mkdir(parents=True)  # renamed, never marked
    latest = latest_checkpoint(tmp_path / "c")
    assert latest is not None
    assert latest.step == 10


def test_a_damaged_one_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    f = fence(tmp_path)
    for step in (5, 10):
        save_checkpoint(tmp_path / "c", step, write("a"), f)
    (tmp_path / "c" / "step-00000010" / "model" / "weights").write_text("b" * 10)
    with pytest.raises(BadCheckpoint, match="differs from its checksum"):
        verify(complete_checkpoints(tmp_path / "c")[-1])
    latest = latest_checkpoint(tmp_path / "c")
    assert latest is not None
    assert latest.step == 5


def test_what_is_kept_are_the_newest_and_the_best(tmp_path: Path) -> None:
    f = fence(tmp_path)
    for step, value in ((1, 0.5), (2, 0.1), (3, 0.3), (4, None), (5, 0.2), (6, None)):
        save_checkpoint(tmp_path / "c", step, write("a"), f, {} if value is None else {"wer": value})
        prune(tmp_path / "c", keep_last=2, keep_best=2, better=wer, fence=f)
    assert [c.step for c in complete_checkpoints(tmp_path / "c")] == [2, 5, 6]
    assert sorted(os.listdir(tmp_path / "c")) == ["step-00000002", "step-00000005", "step-00000006"]


def test_a_superseded_writer_leaves_everything_as_it_is(tmp_path: Path) -> None:
    old = fence(tmp_path)
    save_checkpoint(tmp_path / "c", 5, write("a"), old)
    new = fence(tmp_path)
    with pytest.raises(Superseded):
        save_checkpoint(tmp_path / "c", 6, write("old"), old)
    with pytest.raises(Superseded):
        prune(tmp_path / "c", 1, 1, wer, old)
    save_checkpoint(tmp_path / "c", 6, write("new"), new)
    assert [c.step for c in complete_checkpoints(tmp_path / "c")] == [5, 6]
    assert (tmp_path / "c" / "step-00000006" / "model" / "weights").read_text() == "new" * 10


def test_a_failed_save_leaves_the_earlier_ones_and_no_rest(tmp_path: Path) -> None:
    f = fence(tmp_path)
    save_checkpoint(tmp_path / "c", 5, write("a"), f)

    def full(directory: Path) -> None:
        (directory / "model" / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match="the disk is full: step 6"):
        save_checkpoint(tmp_path / "c", 6, full, f)
    assert os.listdir(tmp_path / "c") == ["step-00000005"]


def by_text(path: Path) -> None:
    path.write_text("a" * 300_000)


def by_safetensors(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(75_000)}, path)


def by_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(75_000)}, path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("big", [by_text, by_safetensors, by_torch])
def test_on_a_disk_that_is_really_full_earlier_checkpoints_stay_whole(tmp_path: Path, big) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        f = fence(tmp_path)
        save_checkpoint(disk / "c", 5, write("a", 100_000), f)
        with pytest.raises(NoSpace, match="the disk is full: step 6"):
            save_checkpoint(disk / "c", 6, lambda d: big(d / "model" / "weights"), f)
        (only,) = complete_checkpoints(disk / "c")
        verify(only)
        assert os.listdir(disk / "c") == ["step-00000005"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    f = fence(tmp_path)
    save_checkpoint(tmp_path / "c", 5, write("a"), f)
    save_checkpoint(tmp_path / "c", 5, write("b"), f, {"wer": 0.5})
    (only,) = complete_checkpoints(tmp_path / "c")
    assert only.metrics == {"wer": 0.5}
    assert (only.model / "weights").read_text() == "b" * 10
