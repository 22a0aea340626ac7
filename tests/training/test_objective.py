"""The loss, the metrics, the mixing, the learning rates: against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from toolkit.errors import UsageError
from toolkit.training import Distillation, FitOptions, Phase, Schedule, gradual
from toolkit.training.guard import Diverged, FiniteGuard
from toolkit.training.loss import Objective, Targets, balanced_weights
from toolkit.training.metrics import scores
from toolkit.training.mixing import mix
from toolkit.training.optimiser import build_optimiser, clip, rate_factor
from toolkit.training.order import StepCounts, epoch_batches, num_batches

LOGITS_NK = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
TARGETS_N = torch.tensor([0, 1, 2, 0, 0, 0, 0, 1, 1, 2, 0, 0])


@pytest.mark.parametrize("weight_K", [None, torch.tensor([0.5, 2.0, 1.0])])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_cross_entropy(weight_K: torch.Tensor | None, label_smoothing: float) -> None:
    total, weight = Objective(label_smoothing, weight_K, None)(LOGITS_NK, Targets(TARGETS_N))
    expected = F.cross_entropy(LOGITS_NK, TARGETS_N, weight=weight_K, label_smoothing=label_smoothing)
    assert torch.allclose(total / weight, expected)


def test_mixed_targets_are_soft_labels() -> None:
    share_N = torch.linspace(0, 1, 12)
    total, weight = Objective(0.0, None, None)(LOGITS_NK, Targets(TARGETS_N, TARGETS_N.flip(0), share_N))
    first_NK, second_NK = F.one_hot(TARGETS_N, 3), F.one_hot(TARGETS_N.flip(0), 3)
    soft_NK = share_N[:, None] * first_NK + (1 - share_N[:, None]) * second_NK
    assert torch.allclose(total / weight, F.cross_entropy(LOGITS_NK, soft_NK))


def test_distillation_vanishes_at_the_teacher_and_keeps_the_hard_share() -> None:
    objective = Objective(0.0, torch.tensor([1.0, 2.0, 3.0]), Distillation(0.7, 3.0))
    total, weight = objective(LOGITS_NK, Targets(TARGETS_N), LOGITS_NK.detach())
    hard = F.cross_entropy(LOGITS_NK, TARGETS_N, weight=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose((total / weight).sum(), 0.3 * hard, atol=1e-6)


def test_focus_weighs_what_the_teacher_has_right() -> None:
    teacher_NK = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    right_N = teacher_NK.argmax(1) == TARGETS_N
    assert 0 < right_N.sum() < 12

    def soft(focus: float, rows: torch.Tensor) -> torch.Tensor:
        total, weight = Objective(0.0, None, Distillation(1.0, 1.0, focus))(
            LOGITS_NK[rows], Targets(TARGETS_N[rows]), teacher_NK[rows]
        )
        assert torch.equal(weight, torch.full((2,), float(rows.sum())))
        return total.sum()

    everything = torch.ones(12, dtype=torch.bool)
    assert torch.allclose(soft(5.0, everything), 6 * soft(0.0, right_N) + soft(0.0, ~right_N), rtol=1e-5)
    mixed = Targets(TARGETS_N, TARGETS_N.flip(0), torch.full((12,), 0.25))
    swapped = Targets(TARGETS_N.flip(0), TARGETS_N, torch.full((12,), 0.75))
    objective = Objective(0.0, None, Distillation(1.0, 1.0, 5.0))
    assert torch.allclose(objective(LOGITS_NK, mixed, teacher_NK)[0], objective(LOGITS_NK, swapped, teacher_NK)[0])


def test_balanced_weights_average_one_and_level_the_classes() -> None:
    weight_K = balanced_weights(TARGETS_N, 4)
    count_K = torch.bincount(TARGETS_N, minlength=4)
    assert weight_K[TARGETS_N].mean() == pytest.approx(1)
    assert (weight_K * count_K)[:3].tolist() == pytest.approx([4, 4, 4])
    assert weight_K[3] == 0


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(2, size=200)
    logits = np.round(random.normal(size=(200, 2)), 1)  # with ties
    found = scores(torch.tensor(logits), torch.tensor(targets))
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == targets).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, logits.argmax(1)))
    assert found["roc_auc"] == pytest.approx(roc_auc_score(targets, logits[:, 1] - logits[:, 0]), abs=1e-3)
    assert "roc_auc" not in scores(torch.tensor(logits), torch.zeros(200, dtype=torch.long))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_a_mixed_image_holds_its_share_of_its_own_pixels(mixup: float, cutmix: float) -> None:
    num = 64
    images_NCHW = torch.arange(num, dtype=torch.float32)[:, None, None, None].expand(num, 3, 20, 24).contiguous()
    targets_N = torch.arange(num)
    mixed_NCHW, targets = mix(images_NCHW, targets_N, mixup=mixup, cutmix=cutmix, draw=(0, 1, 0))
    assert targets.share_N is not None
    assert targets.second_N is not None
    expected_N = targets.share_N * targets.first_N + (1 - targets.share_N) * targets.second_N
    assert torch.allclose(mixed_NCHW.mean((1, 2, 3)), expected_N, atol=1e-3)
    assert len(targets.share_N.unique()) > num // 3  # each sample has its own share
    again_NCHW, _ = mix(images_NCHW, targets_N, mixup=mixup, cutmix=cutmix, draw=(0, 1, 0))
    other_NCHW, _ = mix(images_NCHW, targets_N, mixup=mixup, cutmix=cutmix, draw=(0, 2, 0))
    assert torch.equal(mixed_NCHW, again_NCHW)
    assert not torch.equal(mixed_NCHW, other_NCHW)


def test_rates_rise_then_fall_and_shrink_towards_the_input(toy: object) -> None:
    factors = [rate_factor(step, num_steps=100, warmup=0.1) for step in range(100)]
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01
    net = toy.net()  # pyright: ignore[reportAttributeAccessIssue]
    optimiser = build_optimiser(net, [["0"], ["1"], ["5"]], Phase(-1, 1, 1.0, 0.5), weight_decay=0.1)
    rates = {id(p): (group["peak_lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
    assert rates[id(net[5].weight)] == (1.0, 0.1)
    assert rates[id(net[1][0].weight)] == (0.5, 0.1)
    assert rates[id(net[0][0].weight)] == (0.25, 0.1)
    assert rates[id(net[0][1].bias)] == (0.25, 0.0)
    assert len(rates) == len(list(net.parameters()))


@pytest.mark.parametrize("norm", [0.5, 100.0, None])
def test_clipping_is_torchs(norm: float | None) -> None:
    ours = [torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.ones(3)]
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in ours]
    for parameter, gradient in zip(parameters, ours, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, norm if norm is not None else float("inf"))
    assert clip(ours, norm=norm) == pytest.approx(float(expected))
    for parameter, gradient in zip(parameters, ours, strict=True):
        assert torch.allclose(gradient, parameter.grad)  # pyright: ignore[reportArgumentType]


def test_a_device_that_is_not_waited_for_stops_changing_the_weights_by_itself() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = FiniteGuard(optimiser, device=torch.device("cpu"), where="here", waits=True)
    kept = weight.detach().clone()
    with pytest.raises(Diverged) as raised:  # noqa: PT012
        for step in range(1, 100):
            loss = (weight * (torch.nan if step >= 5 else 1.0)).sum()
            loss.backward()
            gradients = [weight.grad]
            guard.admit(step, loss, clip(gradients, norm=1.0))  # pyright: ignore[reportArgumentType]
            optimiser.step()
            optimiser.zero_grad()
            if step == 4:
                kept = weight.detach().clone()
    assert raised.value.step == 5
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("num_samples", [64, 65, 66, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_processes_share_every_batch_of_one_process(num_samples: int, world_size: int) -> None:
    whole = epoch_batches(num_samples, batch_size=32, seed=0, epoch=1)
    parts = [
        epoch_batches(num_samples, batch_size=32, seed=0, epoch=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len(parts[0]) == num_batches(num_samples, batch_size=32, world_size=world_size)
    for number in range(len(parts[0])):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])
    assert not torch.equal(whole[0], epoch_batches(num_samples, batch_size=32, seed=0, epoch=2)[0])


def test_step_counts_add_up() -> None:
    assert list(StepCounts(lambda: 150, lambda: 64)) == [64, 64, 22]
    assert list(StepCounts(lambda: 0, lambda: 64)) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Phase(-2, 1, 1e-3),
        lambda: Phase(0, 0, 1e-3),
        lambda: Phase(0, 1, 0.0),
        lambda: Phase(0, 1, 1e-3, lr_decay=0.0),
        lambda: Phase(0, 1, 1e-3, warmup=1.0),
        lambda: Schedule("none", []),
        lambda: FitOptions(batch_size=0),
        lambda: FitOptions(monitor="balanced_acuracy"),
        lambda: FitOptions(mixup=-1),
        lambda: FitOptions(ema_decay=1.0),
        lambda: FitOptions(class_weights="inverse"),  # pyright: ignore[reportArgumentType]
        lambda: FitOptions(patience=0),
        lambda: FitOptions(label_smoothing=1.0),
        lambda: FitOptions(clip_norm=0),
        lambda: Distillation(1.5),
        lambda: Distillation(0.5, 0.0),
    ],
)
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(UsageError):
        make()  # pyright: ignore[reportCallIssue]


def test_gradual_takes_a_list_and_has_a_phase_for_each_depth() -> None:
    assert [phase.depth for phase in gradual(depths=[1, 3, -1]).phases] == [0, 1, 3, -1]
