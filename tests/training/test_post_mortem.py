"""A step that is not finite names its first bad module and keeps its batch, wherever the fault begins."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from toolkit.data import AugmentSpec
from toolkit.training import Diverged, FitOptions, Phase, Schedule, TrainerSpec
from toolkit.training.guard import FiniteGuard


class Bad(nn.Module):
    """Passes its input on until training call `after`; from then on times `value`, or with a gradient of `value`."""

    def __init__(self, *, after: int, value: float, in_gradient: bool = False) -> None:
        super().__init__()
        self.after, self.value, self.in_gradient, self.calls = after, value, in_gradient, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training and torch.is_grad_enabled()
        if not self.training or self.calls < self.after:
            return x
        if self.in_gradient:
            x = x.clone()
            x.register_hook(lambda gradient: gradient * self.value)
            return x
        return x * self.value


class BadHead(nn.Linear):
    """Gives NaN from its fourth training call on."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += self.training and torch.is_grad_enabled()
        return super().forward(input) * (math.nan if self.calls >= 4 else 1.0)


def kept(run_dir: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    stem = run_dir / f"diverged_step_{step}"
    return load_file(f"{stem}.safetensors"), json.loads(Path(f"{stem}.json").read_text())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_module_is_named_and_the_batch_kept(toy: Any, run: Any, train: Any, tmp_path: Path, value: float) -> None:
    net = toy.net()
    net[1][2] = Bad(after=10, value=value)
    with pytest.raises(Diverged, match=r"step 10 .*first module whose output is not finite is '1\.2' \(Bad\)"):
        run(net, options=FitOptions(batch_size=16))
    tensors, facts = kept(tmp_path / "run", 10)
    assert facts["step"] == 10
    assert torch.equal(tensors["targets_N"], train.targets_N[tensors["indices_N"]])
    assert torch.equal(tensors["inputs"].to(torch.uint8), train.images_NCHW[tensors["indices_N"]])
    assert facts["images"] == [train.keys[index] for index in tensors["indices_N"].tolist()]
    assert all(buffer.isfinite().all() for buffer in net.buffers())


def test_a_gradient_that_is_not_finite_is_traced_to_its_module(toy: Any, run: Any) -> None:
    net = toy.net()
    net[1][2] = Bad(after=3, value=math.nan, in_gradient=True)
    with pytest.raises(Diverged, match=r"step 3 .*first gradient that is not is that of '1\.1' \(BatchNorm2d\)"):
        run(net, options=FitOptions(batch_size=16, mixup=0.4))


def test_a_broken_head_on_cached_features_is_named(toy: Any, run: Any, tmp_path: Path) -> None:
    net = toy.net()
    net[5] = BadHead(16, 3)
    with pytest.raises(Diverged, match=r"step 4 .*'5' \(BadHead\)"):
        run(net, schedule=Schedule("head", (Phase(0, 2, 1e-2, augment=False),)), options=FitOptions(batch_size=16))
    assert kept(tmp_path / "run", 4)[0]["inputs"].shape == (16, 16)  # features


def test_a_device_that_is_looked_at_rarely_gives_the_batch_of_the_first_bad_step(
    toy: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = FiniteGuard.__init__

    def waiting(guard: FiniteGuard, *arguments: Any, **settings: Any) -> None:
        start(guard, *arguments, **(settings | {"waits": True}))

    monkeypatch.setattr(FiniteGuard, "__init__", waiting)
    net, seen = toy.net(), []
    net[1][2] = Bad(after=4, value=math.nan)
    net[0].register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].detach().clone()) if module.training else None
    )
    options = FitOptions(batch_size=16, augment=AugmentSpec())
    with pytest.raises(Diverged, match=r"step 4 .*'1\.2' \(Bad\)"):
        run(net, options=options, trainer=TrainerSpec(accelerator="cpu", channels_last=False))
    tensors, _ = kept(tmp_path / "run", 4)
    assert len(seen) > 5  # it went on for a while
    mean, std = (torch.tensor(getattr(toy.PREPROCESSING, name))[:, None, None] for name in ("mean", "std"))
    assert torch.allclose((tensors["inputs"] / 255 - mean) / std, seen[3], atol=1e-4)
