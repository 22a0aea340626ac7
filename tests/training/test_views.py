"""A fixed number of augmented views of each image: what the frozen part gives for them is computed once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.conftest import PREPROCESSING, make_net
from toolkit.errors import UsageError
from toolkit.models import Deployed
from toolkit.training import AugmentSpec, Distillation, FitOptions, Phase, Schedule, TrainerSpec, gradual, linear_probe

LONG_WAY = TrainerSpec(accelerator="cpu", cache_features=False)
OPTIONS = FitOptions(batch_size=16, augment=AugmentSpec(rotate_degrees=20.0), ema_decay=0.9, mixup=0.3)


def of_views(views: int, *, depth: int = 0, epochs: int = 7) -> Schedule:
    return Schedule("views", (Phase(depth, epochs, 3e-3, views=views),))


def identical(one: nn.Module, other: nn.Module) -> bool:
    found = other.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
def test_the_short_way_through_the_views_gives_the_weights_of_the_long_way(
    depth: int, taught: bool, toy: Any, run: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = replace(OPTIONS, distillation=Distillation(0.5, 2.0) if taught else None)
    more = {"teacher": Deployed(make_net(seed=7), PREPROCESSING)} if taught else {}
    whole = {"train": toy.pixels(96), "val": toy.pixels(64, seed=1), **more}
    short, long, plain = (toy.net() for _ in range(3))
    run(short, schedule=of_views(3, depth=depth), options=options, run_dir=tmp_path / "short", **whole)
    assert "all 3 views of each image" in caplog.text
    run(long, schedule=of_views(3, depth=depth), options=options, trainer=LONG_WAY, run_dir=tmp_path / "long", **whole)
    assert identical(short, long)
    still = Schedule("still", (Phase(depth, 7, 3e-3, augment=False),))
    run(plain, schedule=still, options=options, run_dir=tmp_path / "plain", **whole)
    assert not identical(short, plain)


def test_the_frozen_part_sees_each_view_once(toy: Any, run: Any) -> None:
    net, sizes = toy.net(), []
    net[0][0].register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    run(net, schedule=of_views(3), options=OPTIONS)
    assert sum(size for size in sizes if size > 2) == 3 * 100 + 60


def test_as_many_views_as_epochs_go_the_long_way(toy: Any, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run(toy.net(), schedule=of_views(2, epochs=2), options=OPTIONS)
    assert "with 2 views of each image none is seen twice" in caplog.text


def test_views_without_augmentation_are_the_images_as_they_are(run: Any, toy: Any, tmp_path: Any) -> None:
    one, other = toy.net(), toy.net()
    run(one, schedule=of_views(3), options=replace(OPTIONS, augment=None, mixup=0.0), run_dir=tmp_path / "one")
    still = Schedule("still", (Phase(0, 7, 3e-3, augment=False),))
    run(other, schedule=still, options=replace(OPTIONS, augment=None), run_dir=tmp_path / "other")
    assert identical(one, other)


def test_schedules_pass_views_on_and_nonsense_is_refused() -> None:
    assert linear_probe(views=4).phases[0].views == 4
    assert linear_probe(views=4).phases[0].augment
    assert not linear_probe().phases[0].augment
    assert [phase.views for phase in gradual(head_views=2).phases] == [2, 0, 0]
    for wrong in ({"views": -1}, {"views": 2, "augment": False}):
        with pytest.raises(UsageError, match="views is"):
            Phase(0, 1, 1e-3, **wrong)
