"""What cannot be pruned stays whole and is named, with what stopped it."""

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.nets import swin
from toolkit.pruning import CRITERIA, Budget, apply_plan, find_groups, plan_pruning


class Stubborn(nn.Module):
    """One width is a constant in its code; one hidden layer is free; two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 8, stride=8)
        self.tied = nn.Conv2d(16, 16, 1, bias=False)
        self.twin = nn.Conv2d(16, 16, 1, bias=False)
        self.twin.weight = self.tied.weight
        self.second = nn.Conv2d(16, 32, 1)
        self.up = nn.Linear(32 * 16, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = F.relu(self.second(self.twin(self.tied(self.first(images_NCHW)))))
        return self.head(F.relu(self.up(x.reshape(len(x), 32 * 16))))


def test_what_the_code_or_a_shared_weight_forbids_stays_and_is_named(
    example_NCHW: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    net = Stubborn()
    with caplog.at_level(logging.WARNING):
        plan = plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("ratio", 0.5))
    assert "second" in caplog.text
    assert set(plan.kept) == {"up.weight", "up.bias", "head.weight"}
    apply_plan(net, plan)
    assert net.twin.weight is net.tied.weight
    assert net(example_NCHW).shape == (1, 5)


def test_layers_that_keep_their_channels_are_named_with_what_stopped_them(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="toolkit.pruning"):
        groups = find_groups(swin().eval(), torch.randn(1, 3, 64, 64))
    told = next(record.getMessage() for record in caplog.records if "keep all their channels" in record.getMessage())
    assert "features.1.0.attn.proj" in told
    assert "_softmax" in told or "bmm" in told
    assert not any(group.name in told for group in groups)
