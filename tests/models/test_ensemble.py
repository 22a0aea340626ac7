"""The architecture `ensemble`: it averages its members' answers, each through its own preprocessing, and is plain data."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from toolkit.bundle import Architecture, Plan, Preprocessing
from toolkit.errors import InputRefused, UsageError
from toolkit.models import Deployed, build, register
from toolkit.models.ensemble import Ensemble, Member, architecture_of, joint_plan, joint_preprocessing
from toolkit.models.resizing import Resize

RGB_16 = Preprocessing(size_px=(16, 16))
RGB_8 = Preprocessing(size_px=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def pooled(num_classes: int = 3) -> nn.Module:
    """A linear head on the pooled image."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register("ensemble-test/pooled", pooled)


def member(preprocessing: Preprocessing, weight: float, order: tuple[int, ...] = (0, 1, 2)) -> Member:
    return Member(Architecture("ensemble-test/pooled", {"num_classes": 3}), weight, preprocessing, order)


def built(*members: Member, average: str = "logits") -> Ensemble:
    architecture = architecture_of(members, average=average, size_px=(16, 16))  # pyright: ignore[reportArgumentType]
    net = build(Architecture(architecture.key, json.loads(json.dumps(architecture.kwargs)))).eval()
    assert isinstance(net, Ensemble)
    return net


def test_each_member_sees_the_image_at_its_own_size_and_normalisation() -> None:
    net = built(member(RGB_16, 0.25), member(RGB_8, 0.75))
    images = torch.randint(0, 256, (2, 3, 16, 16)).float()
    small = nn.functional.interpolate(images, size=(8, 8), mode="bilinear", antialias=True)
    expected = 0.25 * Deployed(net.members[0], RGB_16)(images) + 0.75 * Deployed(net.members[1], RGB_8)(small)
    deployed = Deployed(net, joint_preprocessing([RGB_16, RGB_8]))
    assert torch.allclose(deployed(images), expected, atol=1e-5)


def test_averaged_probabilities_come_back_through_softmax() -> None:
    net = built(member(RGB_16, 0.5), member(RGB_16, 0.5, (2, 0, 1)), average="probabilities")
    images = torch.randint(0, 256, (2, 3, 16, 16)).float()
    first, second = (Deployed(one, RGB_16)(images).softmax(1) for one in net.members)
    assert torch.allclose(net(images).softmax(1), (first + second[:, [2, 0, 1]]) / 2, atol=1e-6)


def test_the_state_holds_the_members_tensors_and_no_constants() -> None:
    net = built(member(RGB_16, 0.5), member(RGB_8, 0.5))
    assert set(net.state_dict()) == {f"members.{i}.{name}" for i in (0, 1) for name in pooled().state_dict()}


@pytest.mark.parametrize("sizes", [((32, 20), (9, 7)), ((8, 8), (16, 12)), ((10, 10), (10, 10))])
def test_resizing_is_the_antialiased_bilinear_one(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    images = torch.rand(2, 3, *sizes[0]) * 255
    expected = nn.functional.interpolate(images, size=sizes[1], mode="bilinear", antialias=True)
    assert torch.allclose(Resize(*sizes)(images), expected, atol=1e-3)


def test_members_whose_views_cannot_agree_are_refused() -> None:
    grey = Preprocessing(size_px=(8, 8), colour="L", mean=(0.5,), std=(0.5,))
    with pytest.raises(UsageError, match="colour"):
        joint_preprocessing([RGB_16, grey])
    with pytest.raises(UsageError, match="crop"):
        joint_preprocessing([replace(RGB_16, resize="crop", crop_fraction=0.875), replace(RGB_8, resize="crop")])


@pytest.mark.parametrize("change", [{"average": "votes"}, {"size_px": [16]}, {"members": []}, {"more": 1}])
def test_damaged_arguments_are_refused(change: dict[str, object]) -> None:
    kwargs = architecture_of([member(RGB_16, 0.5), member(RGB_16, 0.5)], average="logits", size_px=(16, 16)).kwargs
    with pytest.raises((InputRefused, UsageError)):
        build(Architecture("ensemble", {**kwargs, **change}))


def test_a_member_that_orders_labels_by_no_permutation_is_refused() -> None:
    with pytest.raises(InputRefused, match="permutation"):
        architecture_of([member(RGB_16, 1.0, (0, 0, 1))], average="logits", size_px=(16, 16))


def test_each_members_plan_moves_under_its_name() -> None:
    plan = joint_plan([Plan(), Plan({"0.weight": {"0": (0, 1)}}, {"0": {"out_channels": 2}, "": {"width": 2}})])
    assert dict(plan.kept) == {"members.1.0.weight": {"0": (0, 1)}}
    assert dict(plan.attributes) == {"members.1.0": {"out_channels": 2}, "members.1": {"width": 2}}
