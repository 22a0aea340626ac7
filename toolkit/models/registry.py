"""From a registry key to a module with random weights.

A bundle names its architecture by a key and plain arguments, never by an import path, because a bundle can come from
anywhere. `torchvision/<name>` and `timm/<name>` are looked up in those libraries; `ensemble` is several models in one
(`toolkit.models.ensemble`); every other key is one that a plugin registered: a module the user names in `plugins`, or one an
installed package offers under the entry point group `toolkit.models`; either calls `register` when it is imported.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from torch import nn

from toolkit.bundle import Architecture, Preprocessing
from toolkit.errors import EnvironmentProblem, InputRefused, ToolkitError, UsageError, unknown_name
from toolkit.models import ensemble, timm_models, torchscript, torchvision_models
from toolkit.models.heads import replace_head

ENTRY_POINTS = "toolkit.models"
LIBRARIES = {"torchvision": torchvision_models, "timm": timm_models}
TAKEN = (ensemble.KEY, torchscript.KEY, "onnx")  # keys of models that no builder makes

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Registered:
    """A user's model: what builds it, and how its images are prepared unless a bundle says otherwise."""

    builder: Builder
    preprocessing: Preprocessing | None


_registered: dict[str, Registered] = {}
_loaded_entry_points: set[str] = set()


def register(key: str, builder: Builder, preprocessing: Preprocessing | None = None) -> None:
    """Offer the model `builder(**kwargs)` under `key`; it must return an `nn.Module` from normalised images to logits.

    A builder without a parameter `num_classes` gets its head replaced where another number of classes is asked for.
    Raises `UsageError` for a key that is taken or that a library owns.
    """
    library = key.partition("/")[0]
    if library in LIBRARIES or key in ("", *TAKEN):
        raise UsageError(
            f"A model cannot be registered as '{key}': choose a key outside {', '.join(LIBRARIES)}/ and {', '.join(TAKEN)}."
        )
    taken = _registered.get(key)
    if taken is not None and _origin(taken.builder) != _origin(builder):
        raise UsageError(f"The model key '{key}' is taken by {_origin(taken.builder)}: choose another.")
    _registered[key] = Registered(builder, preprocessing)


def build(architecture: Architecture) -> nn.Module:
    """The module of `architecture`, with random weights from torch's global generator, in training mode.

    Raises `UsageError` for an unknown key (with the nearest ones) or arguments the builder does not take,
    `EnvironmentProblem` where the library is not installed, `InputRefused` for arguments that name files or downloads.
    """
    kwargs = _plain(architecture)
    if architecture.key == ensemble.KEY:
        return ensemble.assemble(kwargs, build)
    library, _, name = architecture.key.partition("/")
    if library in LIBRARIES:
        builder, num_classes = LIBRARIES[library].builder(name), None
    else:
        builder = _lookup(architecture.key).builder
        takes = inspect.signature(builder).parameters
        accepts = "num_classes" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
        num_classes = None if accepts else kwargs.pop("num_classes", None)
    try:
        net = builder(**kwargs)
    except ToolkitError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise UsageError(f"{architecture.key} cannot be built with {kwargs}: {error}") from error
    if num_classes is not None:
        replace_head(net, num_classes)
    return net


def default_preprocessing(architecture: Architecture) -> Preprocessing:
    """How images are prepared for the published weights of `architecture`; read without any download.

    Where a library knows none, 224 px with ImageNet's mean and standard deviation. Raises as `build` does.
    """
    library, _, name = architecture.key.partition("/")
    if library in LIBRARIES:
        return LIBRARIES[library].preprocessing(name)
    return _lookup(architecture.key).preprocessing or Preprocessing(size_px=(224, 224))


def training_only(architecture: Architecture) -> tuple[str, ...]:
    """Beginnings of tensor names that published checkpoints of `architecture` hold for training alone (auxiliary heads)."""
    library, _, name = architecture.key.partition("/")
    return LIBRARIES[library].training_only(name) if library in LIBRARIES else ()


def _lookup(key: str) -> Registered:
    if key not in _registered:
        _load_entry_points()
    if key not in _registered:
        names = [*_registered, *(f"torchvision/{name}" for name in torchvision_models.names())]
        raise unknown_name("model", key, names)
    return _registered[key]


def _load_entry_points() -> None:
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.value in _loaded_entry_points:
            continue
        try:
            importlib.import_module(entry.module)
        except Exception as error:  # a plugin may fail in any way; the user needs its name
            raise EnvironmentProblem(
                f"The model plugin '{entry.name}' ({entry.module}) of an installed package cannot be imported: {error}. "
                "Update or uninstall that package."
            ) from error
        _loaded_entry_points.add(entry.value)


def _plain(architecture: Architecture) -> dict[str, Any]:
    """The builder's arguments. Bundles are foreign: what would read a file or fetch one is refused here."""
    library = architecture.key.partition("/")[0]
    refused = sorted(set(architecture.kwargs) & set(LIBRARIES[library].REFUSED)) if library in LIBRARIES else []
    if refused:
        raise InputRefused(
            f"{architecture.key}: the argument {refused[0]} would load weights from elsewhere; weights come from the bundle "
            "or from a checkpoint (toolkit adopt checkpoint=...)."
        )
    return {key: _thawed(value) for key, value in architecture.kwargs.items()}


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(entry) for key, entry in value.items()}
    return value


def _origin(builder: Builder) -> str:
    return f"{getattr(builder, '__module__', '?')}.{getattr(builder, '__qualname__', repr(builder))}"
