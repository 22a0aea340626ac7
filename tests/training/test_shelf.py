"""What is computed once lies in the run directory as safetensors, and a stopped run takes it up again."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec, shelf
from toolkit.training.learner import Learner
from toolkit.training.shelf import Shelf, key_of

OPTIONS = FitOptions(batch_size=16)
COUNTS: Any = {"train": 5, "val": 3}
LAYOUTS = {
    "rows": lambda n: torch.randn(n, 7),
    "bfloat16": lambda n: torch.randn(n, 7).bfloat16(),
    "NCHW": lambda n: torch.randn(n, 3, 4, 5),
    "NHWC": lambda n: torch.randn(n, 3, 4, 5).contiguous(memory_format=torch.channels_last),
}


def filled(path: Path, make: Any, *, key: str = "k") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was put on a shelf in batches of two, and what it gives."""
    whole = {split: make(count) for split, count in COUNTS.items()}
    made = Shelf(path, key=key, counts=COUNTS)
    for split, features in whole.items():
        for batch in features.split(2):
            made.put(split, batch)
    return whole, made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_come_back_bit_for_bit_in_their_layout_and_format(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "features.safetensors"
    whole, found = filled(path, LAYOUTS[layout])
    for split, features in whole.items():
        assert torch.equal(found[split], features)
        assert found[split].dtype == features.dtype
        assert found[split].stride() == features.stride()
    assert load_file(path)["val"].shape[0] == 3
    assert str(path) in Path("/proc/self/maps").read_text(), "the tensors are mapped, not read"
    assert [other.name for other in path.parent.iterdir()] == ["features.safetensors"]


def test_another_key_a_torn_file_and_no_file_give_nothing(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    assert Shelf(path, key="k", counts=COUNTS).stored() is None
    filled(path, LAYOUTS["rows"])
    assert Shelf(path, key="k", counts=COUNTS).stored() is not None
    assert Shelf(path, key="other", counts=COUNTS).stored() is None
    path.write_bytes(path.read_bytes()[:100])
    assert Shelf(path, key="k", counts=COUNTS).stored() is None


def test_a_pass_that_is_left_leaves_no_file(tmp_path: Path) -> None:
    left = Shelf(tmp_path / "features.safetensors", key="k", counts=COUNTS)
    left.put("train", torch.randn(2, 7))
    left.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_key_hangs_on_what_is_frozen_and_not_on_what_learns(toy: Any) -> None:
    net = toy.net()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("1."))
    key = key_of(net, "facts")
    with torch.no_grad():
        for parameter in net[1].parameters():
            parameter += 1
        for buffer in net[1].buffers():
            buffer += 1
    assert key_of(net, "facts") == key
    assert key_of(net, "others") != key
    with torch.no_grad():
        next(net[0].parameters())[0] += 1
    assert key_of(net, "facts") != key


@pytest.mark.parametrize("depth", [0, 1])
def test_a_killed_run_takes_up_what_it_had_computed(depth: int, toy: Any, run: Any, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    run_dir = tmp_path / "run"
    settings = {"schedule": Schedule("s", (Phase(depth, 20, 2e-3, augment=False),)), "options": OPTIONS, "run_dir": run_dir}
    ended = toy.in_child(
        settings,
        trainer=TrainerSpec(accelerator="cpu", checkpoint_every_s=0),
        folder=tmp_path,
        number=signal.SIGKILL,
        when=lambda: len(list((run_dir / "checkpoints").glob("0*.ckpt"))) >= 2,
    )
    assert ended == -signal.SIGKILL
    assert len(list((run_dir / "features").glob("*.safetensors"))) == 1
    resumed, whole = toy.net(), toy.net()
    seen: list[int] = []
    resumed[0][0].register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    run(resumed, **settings, resume=True)
    assert "taken up again" in caplog.text
    assert max(seen) <= 2, "the frozen part saw images again"
    run(whole, **{**settings, "run_dir": tmp_path / "whole"})
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert not (run_dir / "features").exists()
    assert not (tmp_path / "whole" / "features").exists()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_new_run_takes_up_nothing_of_one_that_ended_before_its_first_checkpoint(
    depth: int, toy: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule("s", (Phase(depth, 3, 2e-3, augment=False),))

    def fail(*_: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(Learner, "training_step", fail)
    with pytest.raises(ValueError, match="planted"):
        run(toy.net(), schedule=schedule, run_dir=tmp_path / "run", train=toy.pixels(100, seed=5))
    monkeypatch.undo()
    assert list((tmp_path / "run" / "features").glob("*.safetensors"))
    found, clean = toy.net(), toy.net()
    run(found, schedule=schedule, run_dir=tmp_path / "run")
    run(clean, schedule=schedule, run_dir=tmp_path / "clean")
    for name, tensor in clean.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("depth", [0, 1])
def test_a_full_disk_sends_the_phase_the_long_way(
    depth: int, toy: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(shelf, "SHARE_OF_DISK", 0.0)
    run(toy.net(), schedule=Schedule("s", (Phase(depth, 2, 1e-3, augment=False),)), run_dir=tmp_path / "run")
    assert "no room" in caplog.text
