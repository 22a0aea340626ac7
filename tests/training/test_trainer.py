"""Machine settings: refused with the reason, resolved for this machine, and without effect on the caller."""

from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.errors import EnvironmentProblem, UsageError
from toolkit.training import FitOptions, TrainerSpec, full
from toolkit.training import trainer as machine


@pytest.mark.parametrize(
    "settings",
    [
        {"accelerator": "tpu"},
        {"precision": "16-mixed"},
        {"strategy": "deepspeed"},
        {"strategy": "fsdp", "channels_last": True},
        {"strategy": "fsdp", "channels_last": False, "compile": True},
        {"threads": 0},
        {"devices": 2},
        {"num_nodes": 2},
        {"devices": 0, "strategy": "ddp"},
        {"checkpoint_every_s": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainerSpec(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_an_environment_problem(toy: Any, run: Any) -> None:
    with pytest.raises(EnvironmentProblem, match="trainer=cpu"):
        run(toy.net(), trainer=TrainerSpec(accelerator="gpu"))


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 fma", False), ("avx2 avx512_bf16", True), ("amx_bf16", True), ("", False)]
)
def test_bfloat16_is_known_by_the_processors_flags(tmp_path: Path, flags: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu sse {flags}\n")
    assert machine.cpu_has_bf16(tmp_path / "cpuinfo") is expected
    assert not machine.cpu_has_bf16(tmp_path / "nowhere")


def test_bfloat16_without_hardware_is_refused_before_anything_is_written(
    toy: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: False)
    with pytest.raises(EnvironmentProblem, match="slower"):
        run(toy.net(), trainer=TrainerSpec(accelerator="cpu", precision="bf16-mixed"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not machine.cpu_has_bf16(), reason="this CPU has no bfloat16")
def test_bfloat16_trains_float32_weights(toy: Any, run: Any) -> None:
    net = toy.net()
    result = run(net, trainer=TrainerSpec(accelerator="cpu", precision="bf16-mixed"), options=FitOptions(batch_size=16))
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}


def test_auto_is_float32_on_the_cpu() -> None:
    assert TrainerSpec(accelerator="cpu").autocast_dtype is None


def test_threads_hold_for_the_fit_alone(toy: Any, run: Any) -> None:
    seen, net, before = [], toy.net(), torch.get_num_threads()
    net[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    few = {"train": toy.pixels(16), "val": toy.pixels(6, seed=1), "schedule": full(epochs=1)}
    run(net, **few, trainer=TrainerSpec(accelerator="cpu", threads=2))
    assert seen[-1] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_holds_for_the_fit_alone(toy: Any, run: Any, channels_last: bool) -> None:
    net, seen = toy.net(), []
    net[0].register_forward_hook(lambda _, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last)))
    run(net, trainer=TrainerSpec(accelerator="cpu", channels_last=channels_last))
    assert seen[-1] is channels_last
    assert all(parameter.is_contiguous() for parameter in net.parameters())
