"""What every criterion owes; a new file in criteria/ is tested by being there."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import InputRefused, UsageError
from toolkit.pruning import CRITERIA, Budget, Group, PruneOptions, find_groups, plan_pruning, reestimate_batchnorm
from toolkit.pruning.removal import plan_of, zero_removed

Batches = list[tuple[Tensor, Tensor]]


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_scores_are_finite_repeat_and_leave_the_net_alone(
    name: str, mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches
) -> None:
    net = mixed()
    net.requires_grad_(False)
    net.drop.eval()
    before = copy.deepcopy(net)
    groups = find_groups(net, example_NCHW)
    with torch.no_grad():
        scores = CRITERIA[name]()(net, groups, batches=batches, loss=F.cross_entropy)
    again = CRITERIA[name]()(net, groups, batches=batches, loss=F.cross_entropy)
    for group, score, repeated in zip(groups, scores, again, strict=True):
        assert score.shape == (group.num_units,)
        assert torch.isfinite(score).all()
        assert (score >= 0).all()
        assert len(score.unique()) > 1
        assert torch.equal(score, repeated)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("of", ["logits", "loss"])
def test_taylor_predicts_the_change(of: str, mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches) -> None:
    """Against what really changes when a channel is set to zero, on a net whose channels matter little each."""
    net = mixed().eval()
    groups = [g for g in find_groups(net, example_NCHW) if g.name in ("expand", "hidden")]
    repeated = [batches[0]] * (200 if of == "logits" else 1)
    scores = CRITERIA["taylor"](of=of)(net, groups, batches=repeated, loss=F.cross_entropy)
    images, targets = batches[0]
    with torch.no_grad():
        logits = net(images)
        for group, score in zip(groups, scores, strict=True):
            changes = []
            for unit in range(group.num_units):
                keeps = [torch.arange(g.num_units) != (unit if g is group else -1) for g in groups]
                masked = copy.deepcopy(net)
                zero_removed(masked, plan_of(net, groups, keeps))
                if of == "logits":
                    changes.append(((masked(images) - logits) ** 2).sum(1).mean())
                else:
                    changes.append((F.cross_entropy(masked(images), targets) - F.cross_entropy(logits, targets)) ** 2)
            together = torch.stack([score.sqrt(), torch.stack(changes).double().sqrt()])
            assert float(torch.corrcoef(together)[0, 1]) > 0.9


def test_taylor_without_batches_says_so(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    with pytest.raises(UsageError, match="needs batches of images"):
        plan_pruning(mixed(), example_NCHW, criterion=CRITERIA["taylor"](), budget=Budget("macs", 0.5))


def test_scores_that_are_not_numbers_are_an_error(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    def broken(net: nn.Module, groups: Sequence[Group], **_: object) -> list[Tensor]:
        return [torch.full((group.num_units,), float("nan")) for group in groups]

    with pytest.raises(UsageError, match="scores for 'stem'"):
        plan_pruning(mixed(), example_NCHW, criterion=broken, budget=Budget("macs", 0.5))


def test_weights_that_are_nan_are_an_error(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    net.project.weight.data[0] = float("nan")
    with pytest.raises(InputRefused, match="NaN"):
        plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("macs", 0.5))


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="Did you mean logits"):
        CRITERIA["taylor"](of="logit")
    with pytest.raises(UsageError, match=r"options\.steps is 0"):
        PruneOptions(steps=0)
    with pytest.raises(UsageError, match=r"options\.round_to is 0"):
        PruneOptions(round_to=0)


def test_magnitude_finds_the_channel_that_does_nothing(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    with torch.no_grad():
        net.hidden.weight[7] = 0
        net.head.weight[:, 7] = 0
    reestimate_batchnorm(net, [torch.randn(4, 3, 32, 32)])
    groups = [g for g in find_groups(net, example_NCHW) if g.name == "hidden"]
    assert int(CRITERIA["magnitude"]()(net, groups)[0].argmin()) == 7
