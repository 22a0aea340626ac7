"""Registry keys: what is built, what is refused, how images are prepared."""

import builtins
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolkit.bundle import Architecture, Preprocessing
from toolkit.errors import EnvironmentProblem, InputRefused, UsageError
from toolkit.models import build, default_preprocessing, register, registry, torchvision_models
from toolkit.models.registry import training_only


def tiny(num_classes: int = 3, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def headless(width: int = 4) -> nn.Module:
    return tiny(5, width)


@pytest.fixture
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_loaded_entry_points", set())


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("torchvision/resnet81", "torchvision/resnet18"),
        ("resnet18", "torchvision/resnet18"),
        ("timm/tf_efficientnet_lite", "timm/tf_efficientnet_lite4"),
        ("torchvision/fasterrcnn_resnet50_fpn", "torchvision/"),
    ],
)
def test_an_unknown_model_is_met_with_near_names(key: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=suggestion):
        build(Architecture(key))


def test_timm_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_timm(name: str, *rest: Any, **named: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(EnvironmentProblem, match=r"model-upgrade-toolkit\[timm\]"):
        build(Architecture("timm/resnet18"))


@pytest.mark.parametrize(
    ("key", "argument"),
    [
        ("torchvision/resnet18", "weights"),
        ("timm/resnet18", "pretrained"),
        ("timm/resnet18", "checkpoint_path"),
        ("timm/resnet18", "pretrained_cfg_overlay"),
    ],
)
def test_arguments_that_would_load_weights_are_refused(key: str, argument: str) -> None:
    with pytest.raises(InputRefused, match=argument):
        build(Architecture(key, {argument: "DEFAULT"}))


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/model", "../resnet18"])
def test_timm_addresses_are_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match="Unknown model"):
        build(Architecture(f"timm/{name}"))


def test_wrong_arguments_name_the_model() -> None:
    with pytest.raises(UsageError, match=r"torchvision/resnet18.*colour"):
        build(Architecture("torchvision/resnet18", {"colour": 3}))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_are_built_without(name: str) -> None:
    architecture = Architecture(f"torchvision/{name}", {"num_classes": 2})
    with torch.device("meta"):
        net = build(architecture)
    held = [key for key in net.state_dict() if key.startswith(training_only(architecture))]
    assert held == []
    assert isinstance(net.train()(torch.empty(2, 3, 299, 299, device="meta")), torch.Tensor)


@pytest.mark.usefixtures("_fresh_registry")
def test_a_registered_model_is_built_with_its_arguments_and_preprocessing() -> None:
    prepared = Preprocessing(size_px=(8, 8))
    register("tiny", tiny, prepared)
    register("tiny", tiny, prepared)
    net = build(Architecture("tiny", {"num_classes": 6, "width": 5}))
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 6)
    assert default_preprocessing(Architecture("tiny")) == prepared
    with pytest.raises(UsageError, match="taken"):
        register("tiny", headless)
    with pytest.raises(UsageError, match="outside torchvision"):
        register("torchvision/mine", tiny)


@pytest.mark.usefixtures("_fresh_registry")
def test_a_builder_without_num_classes_gets_its_head_replaced() -> None:
    register("headless", headless)
    assert build(Architecture("headless"))(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    assert build(Architecture("headless", {"num_classes": 2}))(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


@pytest.mark.usefixtures("_fresh_registry")
def test_an_installed_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = (
        "from torch import nn\nfrom toolkit.models import register\n"
        "def make(num_classes=2):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
        "register('plugged', make)\n"
    )
    (tmp_path / "plugged_models.py").write_text(source)
    (tmp_path / "broken_models.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [metadata.EntryPoint("plugged", "plugged_models", "toolkit.models")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    assert build(Architecture("plugged", {"num_classes": 4}))(torch.zeros(1, 3, 2, 2)).shape == (1, 4)
    entries.append(metadata.EntryPoint("broken", "broken_models", "toolkit.models"))
    with pytest.raises(EnvironmentProblem, match=r"broken_models.*no licence"):
        build(Architecture("absent"))


def test_preprocessing_is_read_from_the_published_weights() -> None:
    assert default_preprocessing(Architecture("torchvision/resnet18")) == Preprocessing(
        size_px=(224, 224), resize="crop", crop_fraction=224 / 256
    )
    v2 = default_preprocessing(Architecture("torchvision/efficientnet_v2_l"))
    assert (v2.size_px, v2.interpolation, v2.mean) == ((480, 480), "bicubic", (0.5, 0.5, 0.5))
    assert torchvision_models.preprocessing("resnet50", "IMAGENET1K_V1").crop_fraction == 224 / 256
    assert torchvision_models.preprocessing("resnet50", "IMAGENET1K_V2").crop_fraction == 224 / 232
    lite = default_preprocessing(Architecture("timm/tf_efficientnet_lite0"))
    assert (lite.size_px, lite.crop_fraction, lite.interpolation, lite.std) == ((224, 224), 0.875, "bicubic", (0.5,) * 3)


def test_every_torchvision_model_has_a_preprocessing() -> None:
    names = torchvision_models.names()
    assert len(names) >= 80
    for name in names:
        assert default_preprocessing(Architecture(f"torchvision/{name}")).size_px >= (224, 224)
    with pytest.raises(UsageError, match="IMAGENET1K_V1"):
        torchvision_models.weights_named("resnet18", "IMAGENET1K_V9")
