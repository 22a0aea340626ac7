"""timm's models, when the extra is installed: every name its registry lists, without weights."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Literal

from torch import nn

from toolkit.bundle import Preprocessing
from toolkit.errors import missing_extra, unknown_name

REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only")


def builder(name: str) -> Callable[..., nn.Module]:
    """What builds model `name` with random weights. Raises `UsageError` for a name that timm's registry does not hold.

    timm itself also takes addresses (`hf-hub:`, `local-dir:`), which bring code-like configuration from elsewhere; those
    are unknown names here.
    """
    timm = _timm()
    _require(timm, name)
    return functools.partial(timm.create_model, name, pretrained=False)


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing that timm's registry holds for model `name` (crop modes `border` and `squash` both squash)."""
    timm = _timm()
    _require(timm, name)
    published = timm.get_pretrained_cfg(name)
    if published is None:
        return Preprocessing(size_px=(224, 224), resize="crop", crop_fraction=0.875, interpolation="bicubic")
    channels, height_px, width_px = published.input_size
    crop_fraction = published.crop_pct or 0.875
    squash = published.crop_mode != "center" and crop_fraction == 1
    return Preprocessing(
        size_px=(height_px, width_px),
        resize="squash" if squash else "crop",
        crop_fraction=1.0 if squash else crop_fraction,
        interpolation=_interpolation(published.interpolation),
        mean=tuple(published.mean),
        std=tuple(published.std),
        colour="RGB" if channels == 3 else "L",
    )


def training_only(name: str) -> tuple[str, ...]:
    """timm's checkpoints hold nothing for training alone."""
    return ()


def _interpolation(name: str) -> Literal["nearest", "bilinear", "bicubic", "lanczos"]:
    if name == "nearest" or name == "bicubic" or name == "lanczos":
        return name
    return "bilinear"


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "timm", "A timm/ model") from error
    return timm


def _require(timm: ModuleType, name: str) -> None:
    if not timm.is_model(name):
        raise unknown_name("model", f"timm/{name}", [f"timm/{entry}" for entry in timm.list_models()])
