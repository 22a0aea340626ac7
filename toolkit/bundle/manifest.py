"""What a model is, as data: the manifest of a bundle and its canonical form.

Every class here is a frozen value read from and written to plain JSON. Nothing in a manifest says when or where it was
made: equal content gives an equal digest on any machine. Measurements are reports (`toolkit.bundle.report`), because
measuring a model must not change what it is.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from toolkit.errors import InputRefused, UsageError

SCHEMA = 1

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Architecture:
    """A registry key and the plain keyword arguments its builder takes, e.g. `torchvision/resnet18`, `num_classes=2`."""

    key: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What pruning removed, relative to the architecture as its builder makes it.

    `kept[tensor][dim]` lists, in ascending order, the indices kept of that tensor's dimension `dim` (written as a string,
    JSON has no other keys); `attributes[module][name]` is the value a module attribute takes (`groups`, `num_heads`, ...).
    Tensors and modules that do not appear are untouched. An empty plan is an unpruned model.
    """

    kept: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.kept or self.attributes)


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the tensor a model takes: the one spec for training, evaluation, export and serving.

    The image is decoded, turned upright (EXIF), converted to `colour`, resized and cropped to `size_px` (height, width);
    its 0..255 pixels are scaled linearly to `value_range`, then `mean` is subtracted and `std` divided, per channel.
    `resize`: `squash` ignores the aspect ratio; `crop` scales the shorter side so that a centre crop keeps the fraction
    `crop_fraction` of it. `interpolation` names a PIL filter; `antialias` widens it when shrinking.
    """

    size_px: tuple[int, int]
    resize: Literal["squash", "crop"] = "squash"
    crop_fraction: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    colour: Literal["RGB", "L"] = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        channels = 3 if self.colour == "RGB" else 1
        if self.colour not in ("RGB", "L"):
            raise UsageError(f"colour is '{self.colour}'; choose RGB or L")
        if len(self.mean) != channels or len(self.std) != channels:
            raise UsageError(
                f"colour {self.colour} needs {channels} values in mean and std; got {len(self.mean)} and {len(self.std)}"
            )
        if len(self.size_px) != 2 or min(self.size_px) < 1:
            raise UsageError(f"size_px is {list(self.size_px)}; give [height, width] in pixels, each at least 1")
        if self.resize not in ("squash", "crop"):
            raise UsageError(f"resize is '{self.resize}'; choose squash or crop")
        if self.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise UsageError(f"interpolation is '{self.interpolation}'; choose nearest, bilinear, bicubic or lanczos")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"crop_fraction is {self.crop_fraction}; it must lie in (0, 1]")
        if min(self.std) <= 0:
            raise UsageError(f"std is {list(self.std)}; every value must be positive")

    @property
    def num_channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output: `dims` are sizes, or names where the size is free (`batch`)."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    layout: str
    meaning: Literal["pixels", "normalised", "logits", "probabilities", "features"]
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Contract:
    """What a caller may rely on: the inputs and outputs by name."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Where a bundle comes from: the stage, its parents, its data, its recipe (YAML), the code and the packages."""

    stage: str
    parents: tuple[str, ...] = ()
    data_fingerprint: str | None = None
    recipe: str = ""
    git_commit: str | None = None
    git_dirty: bool = False
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle is, but the bytes of its files, whose hashes it holds."""

    architecture: Architecture
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    contract: Contract
    lineage: Lineage
    plan: Plan = field(default_factory=Plan)
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def canonical_json(self) -> bytes:
        """The bytes that are stored and hashed: sorted keys, no spaces, UTF-8, finite numbers only."""
        plain = dataclasses.asdict(self)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @property
    def digest(self) -> str:
        """The bundle's name: the sha256 of `canonical_json`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    @classmethod
    def from_json(cls, content: bytes, origin: str) -> "Manifest":
        """Read a manifest; `origin` names it in errors. Raises `InputRefused` for a newer schema or another shape."""
        try:
            plain = json.loads(content)
        except ValueError as error:
            raise InputRefused(f"{origin} is not JSON ({error}). The bundle is damaged: restore it from a copy.") from error
        schema = plain.get("schema") if isinstance(plain, dict) else None
        if not isinstance(schema, int):
            raise InputRefused(f"{origin} has no schema number: it is not a bundle manifest.")
        if schema > SCHEMA:
            raise InputRefused(
                f"{origin} has schema {schema}, this version reads up to {SCHEMA}: upgrade model-upgrade-toolkit."
            )
        try:
            return from_plain(cls, plain)
        except (TypeError, KeyError, ValueError) as error:
            raise InputRefused(f"{origin} does not have the form of a manifest: {error}") from error


def from_plain(kind: Any, value: Any) -> Any:
    """Build the dataclass, tuple or mapping that the annotation `kind` describes from parsed JSON.

    Raises `TypeError` where the JSON does not have the annotated form, so a damaged file never becomes an odd object.
    """
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_plain(kind, value)
    if origin is tuple:
        return _tuple_from_plain(typing.get_args(kind), value)
    if origin in (Mapping, dict):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {value!r}")
        item = typing.get_args(kind)[1]
        return {key: from_plain(item, entry) for key, entry in value.items()}
    if origin in (types.UnionType, typing.Union):
        return _union_from_plain(typing.get_args(kind), value)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise TypeError(f"{value!r} is none of {typing.get_args(kind)}")
        return value
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value


def _dataclass_from_plain(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object for {kind.__name__}, found {value!r}")
    hints = typing.get_type_hints(kind)
    unknown = set(value) - set(hints)
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return kind(**{name: from_plain(hints[name], entry) for name, entry in value.items()})


def _tuple_from_plain(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {value!r}")
    if arguments[-1] is Ellipsis:
        return tuple(from_plain(arguments[0], entry) for entry in value)
    if len(arguments) != len(value):
        raise TypeError(f"expected {len(arguments)} values, found {len(value)}")
    return tuple(from_plain(kind, entry) for kind, entry in zip(arguments, value, strict=True))


def _union_from_plain(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return from_plain(kind, value)
        except TypeError:
            continue
    raise TypeError(f"{value!r} fits none of {kinds}")
