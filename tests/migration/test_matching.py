"""Tensors meet by name, by a known renaming, or by order and shape; what is unclear is listed and never loaded."""

import itertools
import random
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from toolkit.bundle import Architecture
from toolkit.errors import InputRefused
from toolkit.migration import Matching, load_matched, match
from toolkit.models import build


class Block(nn.Module):
    """A residual block; `first` says whether the shortcut is defined before the other layers."""

    def __init__(self, names: tuple[str, str, str], channels: tuple[int, int], first: bool, kernel: int = 3) -> None:
        super().__init__()
        made = {
            names[0]: nn.Sequential(nn.Conv2d(*channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels[1])),
            names[1]: nn.Sequential(nn.Conv2d(channels[1], channels[1], 3, padding=1), nn.BatchNorm2d(channels[1])),
            names[2]: nn.Sequential(nn.Conv2d(*channels, 1), nn.BatchNorm2d(channels[1])),
        }
        for name in sorted(made, key=lambda n: n != names[2]) if first else made:
            self.add_module(name, made[name])


def network(names: tuple[str, str, str], *, first: bool = False, kernel: int = 3, classes: int = 5) -> nn.Module:
    net = nn.Module()
    net.add_module(f"{names[0]}_stem", nn.Conv2d(3, 4, 3))
    net.add_module(f"{names[0]}_blocks", nn.Sequential(*(Block(names, c, first, kernel) for c in ((4, 8), (8, 16)))))
    net.add_module(f"{names[0]}_out", nn.Linear(16, classes))
    for tensor in net.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else tensor)
    return net


OLD, NEW = ("first", "second", "short"), ("alpha", "omega", "skip")


def loaded(source: dict[str, Tensor], net: nn.Module, matching: Matching) -> bool:
    load_matched(net, source, matching, origin="old.pth")
    state = net.state_dict()
    return all(torch.equal(state[target], source[name]) for target, name in matching.sources.items())


def test_equal_names_are_exact() -> None:
    source, net = network(OLD).state_dict(), network(OLD)
    matching = match(source, net)
    assert matching.counts() == {"exact": len(source)}
    assert loaded(source, net, matching)


@pytest.mark.parametrize("prefix", ["module.", "model.backbone.", "_orig_mod."])
def test_a_prefix_on_either_side_is_a_renaming(prefix: str) -> None:
    state = network(OLD).state_dict()
    source = {prefix + name: tensor for name, tensor in state.items()}
    matching = match(source, network(OLD))
    assert matching.complete
    assert matching.counts() == {"renamed": len(state)}
    wrapped = nn.Module()
    wrapped.add_module("inner", network(OLD))
    assert match(state, wrapped).counts() == {"renamed": len(state)}


def test_what_lies_outside_the_models_prefix_is_left_out() -> None:
    state = network(OLD).state_dict()
    source = {
        **{f"net.{name}": t for name, t in state.items()},
        "criterion.weight": torch.ones(5),
        "metric.total": torch.ones(1),
    }
    matching = match(source, network(OLD))
    assert matching.complete
    assert matching.counts() == {"renamed": len(state), "left out": 2}


def test_two_copies_of_the_model_are_not_chosen_between() -> None:
    state = network(OLD).state_dict()
    source = {f"{prefix}.{name}": t for prefix in ("student", "teacher") for name, t in state.items()}
    matching = match(source, network(OLD))
    assert not matching.complete
    with pytest.raises(InputRefused, match=r"student.*teacher"):
        load_matched(network(OLD), source, matching, origin="old.pth")


def test_old_densenet_names_are_known() -> None:
    with torch.device("meta"):
        net = build(Architecture("torchvision/densenet121"))
    state = net.state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    matching = match(old, net)
    assert matching.complete
    assert {target: matching.sources[target] for target in state} == dict(zip(state, old, strict=True))


def test_other_names_in_the_same_order_match() -> None:
    source, net = network(OLD).state_dict(), network(NEW)
    matching = match(source, net)
    assert matching.counts() == {"order": len(source)}
    assert list(matching.sources.values()) == list(source)
    assert loaded(source, net, matching)


def test_a_shortcut_defined_elsewhere_matches_by_its_shape_and_takes_its_norm_along() -> None:
    source, net = network(OLD).state_dict(), network(NEW, first=True)
    matching = match(source, net)
    assert matching.complete
    assert matching.counts()["shape"] == 2 * 3 * 7
    pairs = matching.sources
    assert pairs["alpha_blocks.1.skip.1.running_var"] == "first_blocks.1.short.1.running_var"
    assert pairs["alpha_blocks.0.alpha.1.weight"] == "first_blocks.0.first.1.weight"
    assert loaded(source, net, matching)


def test_equal_shapes_in_another_order_are_ambiguous_even_where_their_places_agree_by_chance() -> None:
    """With a 1x1 first convolution, the shortcut has its shape: the first place agrees, and means nothing."""
    source, net = network(OLD, kernel=1).state_dict(), network(NEW, kernel=1, first=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    matching = match(source, net)
    assert not matching.complete
    doubtful = {row.source.rpartition(".")[0] for row in matching.ambiguous if row.source}
    assert doubtful == {f"first_blocks.{b}.{part}.{i}" for b in (0, 1) for part in ("first", "short") for i in (0, 1)}
    with pytest.raises(InputRefused, match=r"ambiguous.*Nothing is guessed"):
        load_matched(net, source, matching, origin="old.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_torchvision_regnet_to_timm_is_ambiguous() -> None:
    """A real case: both libraries define the shortcut of a block at another place, and it has its neighbour's shape."""
    pytest.importorskip("timm")
    source = build(Architecture("torchvision/regnet_y_400mf")).state_dict()
    matching = match(source, build(Architecture("timm/regnety_004")))
    assert not matching.complete
    assert not matching.missing
    assert any(".proj." in (row.source or "") for row in matching.ambiguous)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["left", "right"], ["right", "left"]),
        (["branch1", "branch2"], ["path2", "path1"]),
        (["conv", "downsample_conv"], ["downsample_conv2d", "conv2d"]),
    ],
)
def test_names_that_contradict_the_order_are_ambiguous(old: list[str], new: list[str]) -> None:
    def branches(names: list[str]) -> nn.Module:
        return nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 3)) for name in names})

    renamed = {f"old_{name}": tensor for name, tensor in branches(old).state_dict().items()}
    target = branches([f"new_{name}" for name in new])
    assert not match(renamed, target).complete
    agreeing = branches([f"new_{name}" for name in reversed(new)])
    assert match(renamed, agreeing).complete


Unit = tuple[str, int, int, int]  # kind, inputs, outputs, and a number that its tensors are filled with


def units(dice: random.Random) -> list[list[Unit]]:
    """The layers of a random model, module by module, many of them of equal shapes."""
    numbers = itertools.count(1)
    kinds = ("linear", "linear", "conv", "conv and norm")
    sizes = [dice.randint(1, 5) for _ in range(dice.randint(1, 4))]
    return [[(dice.choice(kinds), dice.choice((2, 3)), dice.choice((2, 3)), next(numbers)) for _ in range(n)] for n in sizes]


def written_down(modules: list[list[Unit]], dice: random.Random) -> nn.Module:
    """An implementation of them under names that say nothing."""

    def name() -> str:
        return "".join(dice.choice("bcdfghklmnprst") for _ in range(8))

    net = nn.Module()
    for module in modules:
        block = nn.Module()
        for kind, fan_in, fan_out, number in module:
            layers = [nn.Linear(fan_in, fan_out) if kind == "linear" else nn.Conv2d(fan_in, fan_out, 3, bias=False)]
            layers += [nn.BatchNorm2d(fan_out)] if kind == "conv and norm" else []
            for layer in layers:
                for tensor in layer.state_dict().values():
                    tensor.fill_(number)
                block.add_module(name(), layer)
        net.add_module(name(), block)
    return net


def test_over_many_random_models_a_match_is_right_or_refused_or_told_to_be_unproved() -> None:
    """Two implementations of one model, which define the layers of each module in orders of their own."""
    outcomes: Counter[str] = Counter()
    for seed in range(400):
        dice = random.Random(seed)
        modules = units(dice)
        other = [dice.sample(module, len(module)) for module in modules]
        source, net = written_down(modules, dice).state_dict(), written_down(other, dice)
        matching = match(source, net)
        if not matching.complete:
            with pytest.raises(InputRefused):
                load_matched(net, source, matching, origin="old.pth")
            outcomes["refused"] += 1
            continue
        target = net.state_dict()
        wrong = [name for name, origin in matching.sources.items() if not torch.equal(target[name], source[origin])]
        outcomes["wrong" if wrong else "right"] += 1
        if wrong:  # equal shapes changed places and nothing else did: no file can show that, and the report says so
            assert set(wrong) <= {*matching.by_order_alone, *(name for name in wrong if name.endswith("num_batches_tracked"))}
            rows = [[unit[:3] for module in each for unit in module] for each in (modules, other)]
            assert rows[0] == rows[1], f"seed {seed}: the rows differ, so this could have been seen"
    assert outcomes["refused"] > 100
    assert outcomes["right"] > 100


def test_a_misfit_lists_missing_unexpected_and_reshaped() -> None:
    source, net = network(OLD).state_dict(), network(OLD, classes=7)
    source["more.weight"] = source.pop("first_stem.weight")[:2]
    matching = match(source, net)
    assert matching.missing == ("first_stem.weight",)
    assert matching.unexpected == ("more.weight",)
    assert [row.target for row in matching.reshaped] == ["first_out.weight", "first_out.bias"]
    with pytest.raises(InputRefused) as refusal:
        load_matched(net, source, matching, origin="old.pth")
    for part in ("old.pth", "1 missing (first_stem.weight)", "1 unexpected (more.weight)", "first_out.weight [5, 16] ->"):
        assert part in str(refusal.value)
    assert len(matching.table()) == len(matching.rows)


def test_a_misfit_without_common_names_says_where_the_rows_part() -> None:
    matching = match(network(OLD).state_dict(), network(NEW, classes=7))
    assert [row.target for row in matching.reshaped] == ["alpha_out.weight", "alpha_out.bias"]
    assert not matching.missing


def test_a_linear_layer_fills_a_1x1_convolution() -> None:
    source = {"fc.weight": torch.randn(4, 3), "fc.bias": torch.randn(4)}
    net = nn.ModuleDict({"head": nn.Conv2d(3, 4, 1)})
    load_matched(net, source, match(source, net), origin="old.pth")
    assert torch.equal(net.state_dict()["head.weight"].flatten(1), source["fc.weight"])


def test_batch_counters_may_be_absent_or_left_over() -> None:
    state = network(OLD).state_dict()
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for net in (network(OLD), network(NEW)):
        matching = match(without, net)
        assert matching.complete
        assert matching.counts()["default"] == 6
    plain = nn.ModuleDict({"norm": nn.BatchNorm2d(4, track_running_stats=False)})
    counted = {"norm.weight": torch.ones(4), "norm.bias": torch.ones(4), "norm.num_batches_tracked": torch.tensor(3)}
    assert match(counted, plain).counts() == {"exact": 2, "left out": 1}


def test_auxiliary_heads_and_flop_counters_are_left_out() -> None:
    state = network(OLD).state_dict()
    source = {**state, "AuxLogits.fc.weight": torch.ones(2), "first_stem.total_ops": torch.ones(1)}
    assert match(source, network(OLD), training_only=("AuxLogits.",)).counts() == {"exact": len(state), "left out": 2}
    assert match(source, network(OLD)).unexpected == ("AuxLogits.fc.weight",)


@pytest.mark.parametrize(("dtype", "word"), [(torch.float16, "exact"), (torch.bfloat16, "exact"), (torch.float64, "rounded")])
def test_other_precisions_are_converted_with_a_note(dtype: torch.dtype, word: str) -> None:
    source = {name: t.to(dtype) if t.is_floating_point() else t for name, t in network(OLD).state_dict().items()}
    net = network(OLD)
    notes = load_matched(net, source, match(source, net), origin="old.pth")
    assert word in notes[0]
    assert torch.equal(net.state_dict()["first_out.weight"], source["first_out.weight"].float())


def test_whole_numbers_and_nan_are_refused() -> None:
    net = nn.Linear(2, 2)
    whole = {"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(InputRefused, match="int8"):
        load_matched(net, whole, match(whole, net), origin="old.pth")
    broken = {"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)}
    with pytest.raises(InputRefused, match="NaN"):
        load_matched(net, broken, match(broken, net), origin="old.pth")
