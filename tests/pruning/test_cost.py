"""Costs are counted from what runs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.pruning import count_macs, count_parameters
from toolkit.pruning.cost import profile_macs


def test_convolutions_and_linear_layers_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 25, 7)
    )
    expected = 8 * 3 * 9 * 100 + 8 * 9 * 25 + 200 * 7
    assert count_macs(net, torch.zeros(1, 3, 10, 10)) == expected
    assert count_macs(net, torch.zeros(3, 3, 10, 10)) == expected  # of one image
    assert count_parameters(net) == (8 * 27 + 8) + (72 + 8) + (1400 + 7)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 12))
        self.attention = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        tokens = self.attention(images_NCHW.flatten(2).transpose(1, 2))
        return F.linear(tokens.mean(1), self.weight)


def test_functional_calls_and_attention_count() -> None:
    net = Functional()
    profile = profile_macs(net, torch.zeros(1, 12, 4, 4))
    assert profile.by_tensor["weight"] == 60
    assert profile.by_tensor["attention.self_attn.in_proj_weight"] == 16 * 12 * 36
    assert profile.other == 2 * 16 * 16 * 12  # queries with keys, weights with values
    assert net.training


def test_a_width_costs_in_proportion() -> None:
    wide, narrow = nn.Conv2d(4, 16, 3), nn.Conv2d(4, 4, 3)
    assert count_macs(wide, torch.zeros(1, 4, 9, 9)) == 4 * count_macs(narrow, torch.zeros(1, 4, 9, 9))
