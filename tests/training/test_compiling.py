"""compile=auto: tried only where a run is long, kept for the machine, decided by the run, and never another when resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.training import Phase, Schedule, TrainerSpec, compiling

AUTO = TrainerSpec(accelerator="cpu", channels_last=False, compile="auto")
FOUND = {"start": 60.0, "plain": 0.2, "compiled": 0.1}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "machine"))
    monkeypatch.setattr(compiling, "plain_step", lambda *_: 0.2)


def chosen(toy: Any, run_dir: Path, *, num_steps: int, spec: TrainerSpec = AUTO, resume: bool = False) -> Any:
    decided = compiling.with_compile(spec, toy.net(), toy.PREPROCESSING, steps={8: num_steps}, run_dir=run_dir, resume=resume)
    return decided.compile


def test_a_trial_is_kept_for_the_machine_and_each_run_decides_by_its_length(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(compiling, "trial", lambda *arguments: tried.append(arguments) or dict(FOUND))
    assert chosen(toy, tmp_path / "short", num_steps=100) is False
    assert not tried  # 20 s of steps are not worth one
    assert chosen(toy, tmp_path / "long", num_steps=4000) is True
    monkeypatch.setattr(compiling, "WORTH_TRYING_S", 50.0)
    assert chosen(toy, tmp_path / "middling", num_steps=500) is False  # saves 50 s and costs 60
    assert chosen(toy, tmp_path / "longer", num_steps=700) is True
    assert len(tried) == 1
    assert chosen(toy, tmp_path / "told", num_steps=700, spec=replace(AUTO, compile=False)) is False


def test_what_does_not_compile_or_runs_in_several_processes_is_left_as_it_is(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> dict[str, float]:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiling, "trial", failing)
    assert chosen(toy, tmp_path / "a", num_steps=100_000) is False
    assert chosen(toy, tmp_path / "b", num_steps=100_000, spec=replace(AUTO, strategy="ddp", devices=2)) is False


def test_a_resumed_run_keeps_its_decision(toy: Any, tmp_path: Path) -> None:
    (tmp_path / compiling.COMPILE).write_text(json.dumps({"compile": True}))
    assert chosen(toy, tmp_path, num_steps=1, resume=True) is True
    assert chosen(toy, tmp_path, num_steps=1) is False


def test_only_steps_through_the_whole_net_count() -> None:
    schedule = Schedule("two", (Phase(0, 30, 1e-3), Phase(-1, 4, 1e-3)))
    assert compiling.planned(schedule, num_batches=10, cached=True) == 40
    assert compiling.planned(schedule, num_batches=10, cached=False) == 340


@pytest.mark.slow
def test_trying_is_real_and_leaves_net_and_random_state_alone(toy: Any) -> None:
    net, random = toy.net(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = compiling.trial(net, AUTO, (4, 3, 16, 16))
    assert found["start"] > found["compiled"] > 0
    assert found["plain"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
