"""What competes with what: the same scores, three rankings."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from toolkit.errors import UsageError
from toolkit.pruning import PruneOptions, find_groups
from toolkit.pruning.ranking import RANKINGS, comparable, structure


def kept_shares(net: nn.Module, groups: list, scores: list[Tensor], ranking: str) -> list[float]:
    """The share of each group above the median of all ranks."""
    ranked = comparable(net, groups, scores, ranking)  # pyright: ignore[reportArgumentType]
    level = torch.cat(ranked).median()
    return [float((rank > level).double().mean()) for rank in ranked]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_order_within_a_group_stays(ranking: str, mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    groups = find_groups(net, example_NCHW)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(g.num_units, generator=generator, dtype=torch.float64) for g in groups]
    for score, rank in zip(scores, comparable(net, groups, scores, ranking), strict=True):  # pyright: ignore[reportArgumentType]
        assert torch.equal(torch.argsort(score), torch.argsort(rank))
        assert rank.min() > 0


def test_scales_of_layers_count_only_where_structures_agree() -> None:
    torch.manual_seed(0)
    net = resnet18(num_classes=4).eval()
    groups = find_groups(net, torch.randn(1, 3, 32, 32))
    sets: dict[object, list[int]] = {}
    for number, group in enumerate(groups):
        sets.setdefault(structure(net, group), []).append(number)
    inner = max(sets.values(), key=len)
    assert {groups[g].name for g in inner} == {f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)}
    scores = [torch.arange(1, group.num_units + 1, dtype=torch.float64) / group.num_units for group in groups]
    scores[inner[0]] *= 1e-6  # a layer that hardly matters, among its like
    local = kept_shares(net, groups, scores, "local")
    assert all(abs(share - 0.5) < 0.02 for share in local)
    isomorphic = kept_shares(net, groups, scores, "isomorphic")
    assert isomorphic[inner[0]] == 0
    assert all(isomorphic[g] > 0.4 for g in inner[1:])
    assert abs(kept_shares(net, groups, scores, "global")[inner[0]] - 0.5) < 0.02  # its own mean hides it


def test_an_unknown_ranking_is_an_error_with_a_hint() -> None:
    with pytest.raises(UsageError, match="Did you mean isomorphic"):
        PruneOptions(ranking="isomorfic")  # pyright: ignore[reportArgumentType]
