"""The layout `auto`: the faster one, measured once a machine, and never another when a run is resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolkit.training import FitOptions, TrainerSpec, layout

AUTO = TrainerSpec(accelerator="cpu", channels_last="auto")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "machine"))


def chosen(toy: Any, run_dir: Path, *, net: nn.Module | None = None, spec: TrainerSpec = AUTO, resume: bool = False) -> Any:
    net = net or toy.net()
    return layout.with_layout(spec, net, toy.PREPROCESSING, batch_size=8, run_dir=run_dir, resume=resume).channels_last


@pytest.mark.parametrize(("nchw_s", "nhwc_s", "expected"), [(2.0, 1.0, True), (1.0, 2.0, False), (1.01, 1.0, False)])
def test_the_faster_layout_is_measured_once_and_kept_for_the_machine(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nchw_s: float, nhwc_s: float, expected: bool
) -> None:
    tried = []

    def seconds(net: nn.Module, trainer: TrainerSpec, shape: tuple[int, ...]) -> dict[bool, float]:
        tried.append(shape)
        return {False: nchw_s, True: nhwc_s}

    monkeypatch.setattr(layout, "step_seconds", seconds)
    assert chosen(toy, tmp_path / "a") is expected
    assert chosen(toy, tmp_path / "b") is expected
    assert tried == [(8, 3, 16, 16)]
    chosen(toy, tmp_path / "c", net=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))  # another net is tried anew
    chosen(toy, tmp_path / "d", spec=replace(AUTO, threads=2))
    assert len(tried) == 3
    assert chosen(toy, tmp_path / "e", spec=replace(AUTO, channels_last=not expected)) is not expected


def test_a_resumed_run_keeps_its_layout_whatever_is_faster_now(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "step_seconds", lambda *_: {False: 1.0, True: 2.0})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / layout.LAYOUT).write_text(json.dumps({"channels_last": True}))
    assert chosen(toy, tmp_path / "run", resume=True) is True
    assert chosen(toy, tmp_path / "new") is False


def test_trying_is_real_and_leaves_net_and_random_state_alone(toy: Any) -> None:
    net = toy.net().eval()
    before, random = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    found = layout.step_seconds(net, AUTO, (8, 3, 16, 16))
    assert set(found) == {True, False}
    assert all(0 < seconds < 5 for seconds in found.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_cache_that_cannot_be_written_is_no_obstacle(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "machine").write_text("a file stands here")
    assert chosen(toy, tmp_path / "run") in (True, False)


def test_a_fit_takes_the_chosen_layout(toy: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "step_seconds", lambda *_: {False: 2.0, True: 1.0})
    net, seen = toy.net(), []
    net[0].register_forward_hook(lambda _, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last)))
    run(net, trainer=AUTO, options=FitOptions(batch_size=16))
    assert seen[-1] is True
    assert json.loads((tmp_path / "run" / layout.LAYOUT).read_text()) == {"channels_last": True}
