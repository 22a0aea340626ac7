"""The batch size `auto`: what fits is found by trying, and memory that runs out says what to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.training import FitOptions, TrainerSpec, settled
from toolkit.training import batch_size as module

AUTO = FitOptions(batch_size="auto")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 5e9 bytes")


class Small(nn.Module):
    """Has memory for `most` images in training."""

    def __init__(self, net: nn.Module, *, most: int, error: BaseException) -> None:
        super().__init__()
        self.net, self.most, self.error = net, most, error

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if self.training and len(images_NCHW) > self.most:
            raise self.error
        return self.net(images_NCHW)


def found(toy: Any, net: nn.Module, *, num_train: int = 10_000) -> int:
    options = settled(AUTO, net, preprocessing=toy.PREPROCESSING, num_train=num_train, trainer=toy.CPU)
    return options.images_a_step


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), HOST])
def test_the_largest_power_of_two_that_fits(toy: Any, error: BaseException) -> None:
    assert found(toy, Small(toy.net(), most=50, error=error)) == 32
    assert found(toy, Small(toy.net(), most=64, error=error)) == 64


def test_trying_leaves_the_net_and_the_random_state_alone(toy: Any) -> None:
    net = Small(toy.net(), most=10, error=MemoryError()).eval()
    before, random = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    found(toy, net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.training
    assert torch.equal(torch.get_rng_state(), random)


def test_an_epoch_keeps_its_steps(toy: Any) -> None:
    assert found(toy, toy.net(), num_train=320) == 16
    assert found(toy, toy.net(), num_train=10) == 2


def test_the_hosts_memory_is_foretold(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_image = module.kept_bytes_an_image(toy.net().train(), toy.PREPROCESSING, trainer=toy.CPU)
    assert an_image > 8 * 16 * 16 * 4  # at least what the first convolution hands on
    monkeypatch.setattr(module, "free_bytes", lambda: int(40 * an_image / module.SHARE_OF_MEMORY))
    assert found(toy, toy.net()) == 32


def test_no_room_for_two_images_and_other_errors_are_said(toy: Any) -> None:
    with pytest.raises(EnvironmentProblem, match="Not even two images"):
        found(toy, Small(toy.net(), most=1, error=MemoryError()))
    with pytest.raises(RuntimeError, match="something else"):
        found(toy, Small(toy.net(), most=1, error=RuntimeError("something else")))


def test_a_number_stays_and_a_resumed_run_keeps_its_own(toy: Any, run: Any, tmp_path: Path) -> None:
    facts = {"preprocessing": toy.PREPROCESSING, "num_train": 100, "trainer": toy.CPU}
    assert settled(FitOptions(batch_size=7), toy.net(), **facts).batch_size == 7
    run(toy.net(), options=FitOptions(batch_size=20))
    assert settled(AUTO, toy.net(), **facts, resume=tmp_path / "run") == replace(AUTO, batch_size=20)
    with pytest.raises(InputRefused, match="no run to resume"):
        settled(AUTO, toy.net(), **facts, resume=tmp_path / "elsewhere")


def test_a_fit_wants_a_number(run: Any, toy: Any) -> None:
    with pytest.raises(UsageError, match="batch_size is auto"):
        run(toy.net(), options=AUTO)
    with pytest.raises(UsageError, match="at least 1, or auto"):
        FitOptions(batch_size="large")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), HOST])
def test_memory_that_runs_out_in_training_says_what_to_type(toy: Any, run: Any, error: BaseException) -> None:
    net = Small(toy.net(), most=10, error=error)
    with pytest.raises(EnvironmentProblem, match=r"16 images of 3x16x16 .*options\.batch_size=auto"):
        run(net, options=FitOptions(batch_size=16), trainer=TrainerSpec(accelerator="cpu"))
