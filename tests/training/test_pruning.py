"""Pruning inside a fit: nothing that training knows is lost, a killed run ends as an undisturbed one, processes agree."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.children import launched
from toolkit.bundle import Plan
from toolkit.errors import InputRefused, UsageError
from toolkit.pruning import CRITERIA, Budget, PruneOptions, apply_plan, sliced
from toolkit.training import FitOptions, Phase, Pruning, Schedule, TrainerSpec
from toolkit.training.average import Average
from toolkit.training.carrying import Carried, cut_net
from toolkit.training.optimiser import build_optimiser

OPTIONS = PruneOptions(round_to=2, num_batches=3, batch_size=8, bn_images=32)
PRUNING = Pruning([1, 2], Budget("macs", 0.5), CRITERIA["taylor"](), OPTIONS)
SCHEDULE = Schedule("four", (Phase(-1, 4, 2e-3),))


def widths(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


def test_the_net_ends_pruned_trained_and_as_its_plan_says(toy: Any, run: Callable[..., Any]) -> None:
    net = toy.net()
    net[0][0].weight.requires_grad_(False)
    result = run(net, schedule=SCHEDULE, pruning=PRUNING)
    again = toy.net()
    apply_plan(again, result.plan)
    assert widths(again) == widths(net) != widths(toy.net())
    again.load_state_dict(net.state_dict())
    assert [p.requires_grad for p in net.parameters()] == [name != "0.0.weight" for name, _ in net.named_parameters()]
    assert result.best_metric == max(record["balanced_accuracy"] for record in result.history[2:])
    assert result.best_metric > 0.9


def test_steps_share_the_way(toy: Any, run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="toolkit.training.pruning"):
        run(toy.net(), schedule=SCHEDULE, pruning=PRUNING)
    shares = [float(str(record.args[2])) for record in caplog.records if isinstance(record.args, tuple)]
    assert 60 < shares[0] <= 75
    assert 35 < shares[1] <= 50


def test_moments_and_averages_of_the_channels_that_stay_are_kept(toy: Any) -> None:
    net, images_NCHW = toy.net(), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    stages = [["0"], ["1"], ["5"]]
    optimiser = build_optimiser(net, stages, Phase(-1, 1, 1e-3), weight_decay=0.01)
    average = Average(dict(net.named_parameters()), decay=0.9)
    for _ in range(3):
        net(images_NCHW).square().mean().backward()
        optimiser.step()
        average.update()
    before = {name: {k: v.clone() for k, v in optimiser.state[p].items()} for name, p in net.named_parameters()}
    means = dict(zip(average.names, [mean.clone() for mean in average.mean], strict=True))
    kept = (0, 2, 3, 7)
    plan = Plan(
        kept={"0.0.weight": {"0": kept}, "1.0.weight": {"1": kept}}
        | {f"0.{name}": {"0": kept} for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")},
        attributes={"0.0": {"out_channels": 4}, "1.0": {"in_channels": 4}, "0.1": {"num_features": 4}},
    )
    carried = Carried(net, optimiser, average)
    cut_net(net, plan, channels_last=True)
    optimiser = build_optimiser(net, stages, Phase(-1, 1, 1e-3), weight_decay=0.01)
    average = Average(dict(net.named_parameters()), decay=0.9)
    carried.give(net, optimiser, average, plan)
    learning = [p for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in learning} == {id(p) for p in net.parameters()}
    for name, parameter in net.named_parameters():
        state, dims = optimiser.state[parameter], plan.kept.get(name, {})
        assert state["step"] == 3
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key], sliced(before[name][key], dims)), (name, key)
            assert state[key].stride() == parameter.stride()
        assert torch.equal(average.mean[average.names.index(name)], sliced(means[name], dims))
    assert average.num_updates == 3
    old = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    net(images_NCHW).square().mean().backward()
    optimiser.step()
    assert [name for name, p in net.named_parameters() if torch.equal(p, old[name])] == []


@pytest.mark.parametrize(
    ("checkpoints_before", "channels_last"),
    [(25, False), (37, True), (50, True)],
    ids=["before", "between", "after"],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    toy: Any,
    run: Callable[..., Any],
    everything: tuple[Schedule, FitOptions],
    tmp_path: Path,
    checkpoints_before: int,
    channels_last: bool,
) -> None:
    schedule, options = everything[0], replace(everything[1], patience=None)
    pruning = replace(PRUNING, epochs=[5, 7])
    trainer = TrainerSpec(accelerator="cpu", channels_last=channels_last)
    settings = {"schedule": schedule, "options": options, "pruning": pruning, "trainer": trainer}
    expected, found = toy.net(), toy.net()
    whole = run(expected, **settings, run_dir=tmp_path / "whole")
    cut = {**settings, "run_dir": tmp_path / "run"}

    def far_enough() -> bool:
        return (
            max((int(p.name[:8]) for p in (tmp_path / "run" / "checkpoints").glob("0*.ckpt")), default=-1) >= checkpoints_before
        )

    every_step = replace(trainer, checkpoint_every_s=0)
    code = toy.in_child({**cut, "trainer": every_step}, folder=tmp_path, number=signal.SIGKILL, when=far_enough)
    assert code == -signal.SIGKILL
    result = run(found, **cut, resume=True)
    assert result.plan == whole.plan
    assert result.plan
    states: tuple[dict[str, Tensor], ...] = (found.state_dict(), expected.state_dict())
    assert [name for name in states[1] if not torch.equal(states[0][name], states[1][name])] == []


def test_another_pruning_is_another_run(toy: Any, run: Callable[..., Any]) -> None:
    run(toy.net(), schedule=SCHEDULE, pruning=PRUNING)
    with pytest.raises(InputRefused, match="pruning"):
        run(toy.net(), schedule=SCHEDULE, pruning=replace(PRUNING, epochs=[1, 3]), resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": Schedule("short", (Phase(-1, 2, 1e-3),))}, "the schedule has 2 epochs"),
        ({"schedule": Schedule("probe", (Phase(0, 2, 1e-3), Phase(-1, 2, 1e-3)))}, "only the head learns"),
        ({"options": FitOptions(batch_size=16, patience=1)}, "patience=null"),
    ],
)
def test_what_does_not_go_together_is_refused(toy: Any, run: Callable[..., Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(toy.net(), **{"schedule": SCHEDULE, "pruning": PRUNING, **changes})


@pytest.mark.parametrize("epochs", [[], [2, 1], [1, 1], [-1]])
def test_epochs_must_ascend(epochs: list[int]) -> None:
    with pytest.raises(UsageError, match="ascending"):
        replace(PRUNING, epochs=epochs)


SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from tests.training.conftest import PREPROCESSING, make_net, make_pixels
from toolkit.pruning import CRITERIA, Budget, PruneOptions
from toolkit.training import FitOptions, Phase, Pruning, Schedule, TrainerSpec, fit

torch.set_num_threads(1)
devices, run_dir = int(sys.argv[1]), Path(sys.argv[2])
rank = int(os.environ.get("RANK", 0))
net = make_net()
net[4].p = 0.0
# Only the first process decides: the others would choose at random, each by a seed of its own.
options = PruneOptions(round_to=2, num_batches=3, bn_images=32)
pruning = Pruning([1, 2], Budget("macs", 0.5), CRITERIA["random"](seed=rank), options)
result = fit(
    net, train=make_pixels(100), val=make_pixels(50, seed=1), preprocessing=PREPROCESSING,
    schedule=Schedule("three", (Phase(-1, 3, 2e-3),)), options=FitOptions(batch_size=16, ema_decay=0.9),
    trainer=TrainerSpec(accelerator="cpu", devices=devices, strategy="ddp"), run_dir=run_dir, pruning=pruning,
)
torch.save({"net": net.state_dict()}, run_dir / f"weights-{rank}.pt")
(run_dir / f"plan-{rank}.json").write_text(json.dumps(result.plan.kept))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_cut_the_same_channels(tmp_path: Path) -> None:
    assert launched(SCRIPT, 2, tmp_path / "two", num_processes=2) == [0, 0]
    plans = [json.loads((tmp_path / "two" / f"plan-{rank}.json").read_text()) for rank in range(2)]
    assert plans[0] == plans[1] != {}
    nets = [torch.load(tmp_path / "two" / f"weights-{rank}.pt", weights_only=True)["net"] for rank in range(2)]
    learned = [name for name in nets[0] if "running" not in name]  # the average of statistics is each process's own
    assert [name for name in learned if not torch.equal(nets[0][name], nets[1][name])] == []
