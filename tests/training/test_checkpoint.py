"""Checkpoint files: whole or absent, recognised when damaged, read without running anything."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.errors import EnvironmentProblem, InputRefused
from toolkit.training.checkpoint import Checkpoints, DurableCheckpointIO


def test_the_newest_of_at_most_two_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for number in range(4):
        checkpoints.save({"number": number, "tensor": torch.full((3,), number)})
    assert len(list(tmp_path.iterdir())) == 2
    state = checkpoints.load()
    assert state is not None
    assert state["number"] == 3


@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "empty"])
def test_damage_is_noticed_and_the_one_before_serves(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"tensor": torch.zeros(1000)})
    newest = checkpoints.save({"tensor": torch.ones(1000)})
    content = bytearray(newest.read_bytes())
    content[2000] ^= 4
    newest.write_bytes({"flip a bit": bytes(content), "truncate": bytes(content[:1000]), "empty": b""}[damage])
    state = checkpoints.load()
    assert state is not None
    assert torch.equal(state["tensor"], torch.zeros(1000))
    assert newest.name in caplog.text
    checkpoints.save({"tensor": torch.full((1,), 2.0)})
    state = checkpoints.load()
    assert state is not None
    assert state["tensor"] == 2


def test_a_write_that_dies_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"number": 0})

    def die(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(EnvironmentProblem, match="No space left"):
            checkpoints.save({"number": 1})
    assert checkpoints.load() == {"number": 0}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="file"):
        Checkpoints(tmp_path / "file" / "checkpoints").save({"number": 0})


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploited",)


def test_reading_runs_no_code_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state": Exploit()}, "evil.ckpt", pickle_module=pickle)
    with pytest.raises(InputRefused, match=r"evil\.ckpt"):
        DurableCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "exploited").exists()


def test_the_io_keeps_the_old_file_or_has_the_new(tmp_path: Path) -> None:
    io = DurableCheckpointIO()
    io.save_checkpoint({"number": 1}, tmp_path / "a.ckpt")
    io.save_checkpoint({"number": 2}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"number": 2}
    io.remove_checkpoint(tmp_path / "a.ckpt")
    io.remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []
