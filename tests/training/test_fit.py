"""What a fit does to a net, and what it leaves as it was."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed
from toolkit.training import AugmentSpec, Distillation, Diverged, FitOptions, Phase, Schedule, TrainerSpec, linear_probe
from toolkit.training.checkpoint import Checkpoints
from toolkit.training.metrics import scores

HEAD_ONLY = Schedule("head", (Phase(0, 4, 1e-2, augment=False),))
UNCACHED = TrainerSpec(accelerator="cpu", cache_features=False)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def changed(before: dict[str, torch.Tensor], net: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


def count_images(module: nn.Module) -> list[int]:
    """Will hold the size of each batch of real images that goes through `module`."""
    sizes: list[int] = []
    module.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)) if not output.is_meta else None)
    return sizes


@torch.no_grad()
def validation_scores(toy: Any, net: nn.Module, val: Any) -> dict[str, float]:
    return scores(Deployed(net, toy.PREPROCESSING).eval()(val.images_NCHW.float()), val.targets_N)


def test_it_learns_and_ends_with_the_weights_it_reports(toy: Any, run: Any, val: Any) -> None:
    net = toy.net()
    result = run(net, schedule=Schedule("s", (Phase(-1, 8, 1e-2),)))
    assert result.best_metric > 0.9
    assert result.best_metric == max(record["balanced_accuracy"] for record in result.history)
    assert validation_scores(toy, net, val)["balanced_accuracy"] == pytest.approx(result.best_metric, abs=1e-6)


def test_flags_modes_and_the_callers_random_state_are_as_before(toy: Any, run: Any, everything: Any) -> None:
    schedule, options = everything
    net = toy.net()
    net[0].requires_grad_(False)
    net.train()
    net[1].eval()
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}
    random = torch.get_rng_state()
    run(net, schedule=schedule, options=options)
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert net[0][0].weight.is_contiguous()


@pytest.mark.parametrize(("depth", "moved"), [(0, {"5"}), (1, {"1", "5"}), (-1, {"0", "1", "5"}), (99, {"0", "1", "5"})])
def test_depth_says_which_stages_move_batchnorm_statistics_included(toy: Any, run: Any, depth: int, moved: set[str]) -> None:
    net = toy.net()
    before = weights(net)
    run(net, schedule=Schedule("s", (Phase(depth, 1, 1e-2),)))
    assert changed(before, net) == moved


def test_the_best_weights_of_a_phase_outlive_one_that_ruins_what_was_frozen(toy: Any, run: Any, tmp_path: Path) -> None:
    alone, followed, head = toy.net(), toy.net(), HEAD_ONLY.phases[0]
    options = FitOptions(batch_size=16, monitor="loss")
    expected = run(alone, schedule=HEAD_ONLY, options=options, run_dir=tmp_path / "alone")
    found = run(followed, schedule=Schedule("ruined", (head, Phase(-1, 1, 50.0))), options=options)
    assert found.history[-1]["loss"] > found.history[-2]["loss"]
    assert found.best_metric == expected.best_metric
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in followed.state_dict().items())


def test_a_checkpoint_holds_what_is_frozen_once(toy: Any, run: Any, tmp_path: Path) -> None:
    net = toy.net()
    net[0][0].spare = nn.Parameter(torch.randn(256, 256))
    run(net, schedule=HEAD_ONLY, run_dir=tmp_path / "head")
    (newest, *_) = Checkpoints(tmp_path / "head" / "checkpoints").paths()
    assert net[0][0].spare.nbytes < newest.stat().st_size < 2 * net[0][0].spare.nbytes


def test_frozen_batchnorm_keeps_its_statistics_also_where_its_stage_learns(toy: Any, run: Any) -> None:
    net = toy.net()
    before = weights(net)
    run(net, options=FitOptions(batch_size=16, freeze_batchnorm=True))
    assert torch.equal(net[0][1].running_mean, before["0.1.running_mean"])
    assert not torch.equal(net[0][0].weight, before["0.0.weight"])


def test_a_frozen_prefix_builds_no_graph(toy: Any, run: Any) -> None:
    net, seen = toy.net(), []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(("below", output.requires_grad)))
    net[1].register_forward_hook(
        lambda module, inputs, output: seen.append(("above", output.requires_grad and module.training))
    )
    run(net, schedule=Schedule("s", (Phase(1, 1, 1e-3),)))
    assert {flag for place, flag in seen if place == "below"} == {False}
    assert {flag for place, flag in seen if place == "above"} == {True, False}  # in training, and in validation


@pytest.mark.parametrize("options", [FitOptions(batch_size=16), FitOptions(batch_size=16, ema_decay=0.9, class_weights=True)])
def test_cached_features_give_the_same_head_bit_for_bit(toy: Any, run: Any, tmp_path: Path, options: FitOptions) -> None:
    cached, uncached = toy.net(), toy.net()
    sizes = count_images(cached[0])
    first = run(cached, schedule=HEAD_ONLY, options=options, run_dir=tmp_path / "cached")
    second = run(uncached, schedule=HEAD_ONLY, options=options, trainer=UNCACHED, run_dir=tmp_path / "uncached")
    assert sum(sizes) == 100 + 60
    assert torch.equal(cached[5].weight, uncached[5].weight)
    assert torch.equal(cached[5].bias, uncached[5].bias)
    assert first.feature_seconds > 0
    assert second.feature_seconds == 0


def test_the_number_of_threads_does_not_tell_a_cached_head_from_an_uncached_one(toy: Any, run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 512, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cached = nn.Sequential(body, nn.Linear(512, 3))
    uncached, schedule = copy.deepcopy(cached), Schedule("s", (Phase(0, 4, 1e-2, augment=False),))
    threads: list[int] = []
    for layer, factor in ((cached[1], 1), (uncached[0], 10)):
        layer.register_forward_hook(
            lambda *told, factor=factor: threads.append(factor * torch.get_num_threads() * (len(told[2]) > 2))
        )
    options, before = FitOptions(batch_size=32), torch.get_num_threads()
    spec = TrainerSpec(accelerator="cpu", threads=2)
    run(cached, schedule=schedule, options=options, trainer=spec, run_dir=tmp_path / "cached")
    run(
        uncached, schedule=schedule, options=options, trainer=replace(spec, cache_features=False), run_dir=tmp_path / "uncached"
    )
    assert torch.equal(cached[1].weight, uncached[1].weight)
    assert set(threads) - {0} == {1, 20}, "the head on one thread, what is below it on both"
    assert torch.get_num_threads() == before


def test_features_are_not_cached_where_images_vary(toy: Any, run: Any) -> None:
    net = toy.net()
    sizes = count_images(net[0])
    run(net, schedule=Schedule("s", (Phase(0, 2, 1e-2),)), options=FitOptions(batch_size=16, augment=AugmentSpec()))
    assert sum(sizes) == 2 * (100 + 60)


class PooledHead(nn.Module):
    """Like SqueezeNet: the classifier is a convolution, and the logits are its pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(images_NCHW)).relu().mean((2, 3))


def test_a_head_whose_output_is_not_the_nets_goes_through_the_whole_net(run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cached, uncached = PooledHead(), PooledHead()
    uncached.load_state_dict(cached.state_dict())
    run(cached, schedule=HEAD_ONLY, run_dir=tmp_path / "cached")
    run(uncached, schedule=HEAD_ONLY, trainer=UNCACHED, run_dir=tmp_path / "uncached")
    assert torch.equal(cached.classifier.weight, uncached.classifier.weight)


class Poisoned(nn.Module):
    """A net whose output turns to `value` from the forward pass `after` on, in training."""

    def __init__(self, net: nn.Module, *, after: int, value: float) -> None:
        super().__init__()
        self.net, self.after, self.value, self.passes = net, after, value, 0

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        logits_NK = self.net(images_NCHW)
        self.passes += self.training
        return logits_NK * self.value if self.training and self.passes >= self.after else logits_NK


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_the_checkpoint_stays_good(
    toy: Any, run: Any, tmp_path: Path, value: float
) -> None:
    net = Poisoned(toy.net(), after=10, value=value)
    with pytest.raises(Diverged, match=r"step 10 .*NaN or infinite") as raised:
        run(net, trainer=TrainerSpec(accelerator="cpu", checkpoint_every_s=0))
    assert raised.value.step == 10
    assert raised.value.exit_code == 1
    state = Checkpoints(tmp_path / "run" / "checkpoints").load()
    assert state is not None
    assert state["course"]["num_steps"] == 9
    assert all(tensor.isfinite().all() for tensor in [*state["net"].values(), *net.state_dict().values()])


def test_early_stopping_ends_the_phase_and_the_next_one_begins(toy: Any, run: Any) -> None:
    phases = (Phase(-1, 50, 1e-2, augment=False), Phase(0, 2, 1e-9, augment=False))
    result = run(toy.net(), schedule=Schedule("s", phases), options=FitOptions(batch_size=16, patience=2, monitor="accuracy"))
    lengths = [sum(record["phase"] == number for record in result.history) for number in (1, 2)]
    assert lengths[0] < 50
    assert lengths[1] == 2


def test_the_next_phase_starts_from_the_best_weights(toy: Any, run: Any) -> None:
    ruinous = Phase(-1, 2, 10.0)
    net = toy.net()
    result = run(net, schedule=Schedule("s", (Phase(-1, 6, 1e-2), ruinous, Phase(0, 1, 1e-9))))
    best = max(record["balanced_accuracy"] for record in result.history[:6])
    assert result.history[7]["balanced_accuracy"] < best
    assert result.history[8]["balanced_accuracy"] == best


def test_the_average_is_what_is_validated_and_kept(toy: Any, run: Any, val: Any, tmp_path: Path) -> None:
    plain, averaged = toy.net(), toy.net()
    run(plain, run_dir=tmp_path / "plain")
    result = run(averaged, options=FitOptions(batch_size=16, ema_decay=0.9), run_dir=tmp_path / "averaged")
    assert not torch.equal(plain[5].weight, averaged[5].weight)
    assert validation_scores(toy, averaged, val)["balanced_accuracy"] == pytest.approx(result.best_metric, abs=1e-6)


@pytest.mark.parametrize("cached", [True, False])
def test_a_student_comes_nearer_to_its_teacher(toy: Any, run: Any, val: Any, tmp_path: Path, cached: bool) -> None:
    teacher_net = toy.net(seed=5)
    run(teacher_net, schedule=Schedule("s", (Phase(-1, 6, 1e-2),)), run_dir=tmp_path / "teacher")
    teacher = Deployed(teacher_net, toy.PREPROCESSING)
    before = weights(teacher_net)

    def distance(weight: float) -> float:
        torch.manual_seed(0)
        student = toy.net()
        if cached:
            student.load_state_dict(before)
            student[5].reset_parameters()
        options = FitOptions(batch_size=16, distillation=Distillation(weight, 2.0))
        schedule = Schedule("s", (Phase(0 if cached else -1, 12, 2e-2, augment=False),))
        run(student, schedule=schedule, options=options, teacher=teacher, run_dir=tmp_path / f"student{weight}")
        with torch.no_grad():
            pixels_NCHW = val.images_NCHW.float()
            student_NK = Deployed(student.eval(), toy.PREPROCESSING)(pixels_NCHW).log_softmax(1)
            teacher_NK = teacher(pixels_NCHW).log_softmax(1)
        return float(nn.functional.kl_div(student_NK, teacher_NK, log_target=True, reduction="batchmean"))

    assert distance(1.0) < distance(0.0)
    assert changed(before, teacher_net) == set()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(toy: Any, run: Any, everything: Any, tmp_path: Path) -> None:
    schedule, options = everything
    nets = [toy.net() for _ in range(3)]
    for index, (net, seed) in enumerate(zip(nets, (3, 3, 4), strict=True)):
        torch.manual_seed(index)
        run(net, schedule=schedule, options=replace(options, seed=seed), run_dir=tmp_path / str(index))
    assert torch.equal(nets[0][5].weight, nets[1][5].weight)
    assert not torch.equal(nets[0][5].weight, nets[2][5].weight)


def test_a_last_batch_of_one_is_left_out(toy: Any, run: Any) -> None:
    result = run(toy.net(), train=toy.pixels(33))
    assert result.num_steps == 2 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": FitOptions(monitor="roc_auc")}, "needs two classes"),
        ({"options": FitOptions(distillation=Distillation())}, "no teacher"),
        ({"val": None}, "labels"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_anything_is_written(
    toy: Any, run: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    change = {key: toy.pixels(10, num_classes=2) if value is None else value for key, value in change.items()}
    with pytest.raises((UsageError, InputRefused), match=message):
        run(toy.net(), **change)
    assert not (tmp_path / "run").exists()


def test_nothing_but_the_progress_lines_is_printed(toy: Any, run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run(toy.net(), schedule=linear_probe(epochs=1))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
