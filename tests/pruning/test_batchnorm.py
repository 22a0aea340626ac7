"""Re-estimated statistics are the plain average over the batches, and nothing else has changed."""

import copy

import pytest
import torch
from torch import nn

from toolkit.errors import UsageError
from toolkit.pruning import reestimate_batchnorm


def net_of_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.9), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )


BATCHES = list(torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1)).split(8))


def test_the_statistics_are_the_average_over_the_batches() -> None:
    net = net_of_norms()
    assert reestimate_batchnorm(net, BATCHES) == 40
    with torch.no_grad():
        features = [net[0](batch) for batch in BATCHES]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variance = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    assert torch.allclose(net[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(net[1].running_var, variance, atol=1e-6)


def test_it_forgets_the_old_statistics_and_repeats() -> None:
    net = net_of_norms()
    net[1].running_mean.fill_(1e6)
    reestimate_batchnorm(net, BATCHES)
    first = copy.deepcopy(net.state_dict())
    reestimate_batchnorm(net, BATCHES)  # dropout is off: nothing random
    assert all(torch.equal(first[key], value) for key, value in net.state_dict().items())


def test_modes_momenta_flags_and_weights_are_restored() -> None:
    net = net_of_norms()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net)
    reestimate_batchnorm(net, BATCHES)
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.1)
    for (name, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.requires_grad == q.requires_grad
        assert p.grad is None


def test_bad_images_leave_the_old_statistics() -> None:
    net = net_of_norms()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UsageError, match="not finite"):
        reestimate_batchnorm(net, [*BATCHES, torch.full((2, 3, 6, 6), float("nan"))])
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert (net[1].momentum, net.training, net[1].training) == (0.3, True, True)


@pytest.mark.parametrize("batches", [[], [BATCHES[0][:1]]])
def test_no_usable_batch_is_an_error_that_changes_nothing(batches: list[torch.Tensor]) -> None:
    net = net_of_norms()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UsageError, match="two or more images"):
        reestimate_batchnorm(net, batches)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_net_without_statistics_takes_no_batch() -> None:
    assert reestimate_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), BATCHES) == 0
