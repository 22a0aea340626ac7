"""How much each group matters, kept where an interrupted measurement can go on."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.pruning import CRITERIA, find_groups
from toolkit.pruning.sensitivity import Sensitivity, measure_sensitivity

Batches = list[tuple[Tensor, Tensor]]


class Counting:
    """The criterion `magnitude`, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: object, **kwargs: object) -> list[Tensor]:
        self.calls += 1
        return CRITERIA["magnitude"]()(*args, **kwargs)


def test_a_group_that_does_nothing_costs_nothing_and_lines_are_taken_over(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches, tmp_path: Path
) -> None:
    net, criterion, path = mixed(), Counting(), tmp_path / "s.jsonl"
    with torch.no_grad():
        net.head.weight[:, :24] = 0  # the half of `hidden` that goes first
        net.hidden.weight[:24] *= 1e-3
        net.head.weight[:, 24:] *= 20
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def measured(key: str) -> list[Sensitivity]:
        return measure_sensitivity(net, example_NCHW, criterion=criterion, batches=batches, path=path, key=key)

    first = measured("a")
    found = {one.group: one for one in first}
    assert list(found) == [group.name for group in find_groups(net, example_NCHW)]
    assert abs(found["hidden"].loss_rise) < 1e-4 < max(abs(one.loss_rise) for one in first)
    assert all(0 < one.macs_saved < 1 for one in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert (measured("a"), criterion.calls) == (first, 1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # killed while writing the fourth
    assert (measured("a"), criterion.calls) == (first, 2)
    assert (measured("of another net"), criterion.calls) == (first, 3)
