"""torchvision's classification models: every name its registry lists, without weights.

Inception v3 and GoogLeNet are built without their auxiliary heads: those exist for training from scratch, are dropped from
every published use, and would make the training output a tuple. torchvision is imported on first use: it takes seconds, which a
command that only looks, or refuses its input, need not.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from toolkit.bundle import Preprocessing
from toolkit.errors import unknown_name

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

REFUSED = ("weights", "weights_backbone", "pretrained", "progress")
TRAINING_ONLY = {"inception_v3": ("AuxLogits.",), "googlenet": ("aux1.", "aux2.")}


def names() -> list[str]:
    """The names of all classification models, sorted."""
    from torchvision import models

    return models.list_models(module=models)


def builder(name: str) -> Callable[..., nn.Module]:
    """What builds model `name` with random weights. Raises `UsageError` for an unknown name."""
    from torchvision.models import get_model_builder

    _require(name)
    made = functools.partial(get_model_builder(name), weights=None)
    return functools.partial(made, aux_logits=False, init_weights=True) if name in TRAINING_ONLY else made


def weights_named(name: str, weights: str = "DEFAULT") -> "WeightsEnum | None":
    """The entry `weights` (e.g. `IMAGENET1K_V1`) among the published weights of model `name`; None where none are published.

    Nothing is downloaded. Raises `UsageError` for an unknown entry.
    """
    from torchvision.models import get_model_weights

    _require(name)
    published = get_model_weights(name)
    if not len(published):
        return None
    if weights not in published.__members__ and weights != "DEFAULT":
        raise unknown_name(f"weights of torchvision/{name}", weights, published.__members__)
    return published[weights]


def preprocessing(name: str, weights: str = "DEFAULT") -> Preprocessing:
    """The preprocessing in the metadata of the published `weights` of model `name`."""
    entry = weights_named(name, weights)
    if entry is None:
        return Preprocessing(size_px=(224, 224), resize="crop", crop_fraction=224 / 256)
    preset: Any = entry.transforms()
    crop_px, resize_px = preset.crop_size[0], preset.resize_size[0]
    return Preprocessing(
        size_px=(crop_px, crop_px),
        resize="crop",
        crop_fraction=crop_px / resize_px,
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def training_only(name: str) -> tuple[str, ...]:
    """Beginnings of the tensor names that published checkpoints of model `name` hold for training alone."""
    return TRAINING_ONLY.get(name, ())


def _require(name: str) -> None:
    if name not in names():
        known = names()
        raise unknown_name("model", f"torchvision/{name}", [f"torchvision/{entry}" for entry in known])


def published_as(name: str, file_name: str) -> str | None:
    """The entry of model `name` whose published file is called `file_name`, or None."""
    from torchvision.models import get_model_weights

    _require(name)
    published = get_model_weights(name)
    return next((entry.name for entry in published if entry.url.rpartition("/")[2] == file_name), None)
