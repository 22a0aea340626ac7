"""Any torchvision classification data set by its class name, from a local root.

Data sets that know their files (`samples`) stay on disk; the others (MNIST, CIFAR, ...) are read through their own indexing
into memory once. Splits that the data set has are kept; missing ones are taken from its training images.
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.images import ImageSet, Sample, Split
from toolkit.data.splits import with_splits
from toolkit.errors import InputRefused, UsageError, unknown_name

_SPLIT_NAMES: tuple[tuple[Split, tuple[str, ...]], ...] = (
    ("train", ("train",)),
    ("val", ("val", "valid")),
    ("test", ("test",)),
)


def torchvision_dataset(
    name: str,
    root: Path | str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    download: bool = False,
    val_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> ImageSet:
    """`torchvision.datasets.<name>` under `root`, its own splits kept; `kwargs` go to its constructor.

    Raises `UsageError` for an unknown name or one that is not image classification, `InputRefused` when the files are not
    under `root` (with `download=true` torchvision fetches them first, where it can).
    """
    constructor = _constructor(name)
    parameters = inspect.signature(constructor).parameters
    arguments = dict(kwargs or {})
    if "root" in parameters:
        arguments["root"] = str(Path(root).expanduser())
    if "download" in parameters:
        arguments["download"] = download
    parts: dict[Split, Any] = {}
    for split, chosen in _parts(parameters, arguments):
        part = _construct(name, constructor, {**arguments, **chosen})
        if part is not None:
            parts[split] = part
    if not parts:
        raise InputRefused(f"torchvision data set {name}: no split of it is readable under {root}.")
    samples = [sample for split, part in parts.items() for sample in _samples(name, part, split)]
    return ImageSet(
        name=name,
        labels=_labels(next(iter(parts.values())), samples),
        samples=with_splits(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, given=parts.keys()),
    )


def _constructor(name: str) -> Any:
    import torchvision.datasets as datasets

    kinds = {n: getattr(datasets, n) for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    known = {n: kind for n, kind in kinds.items() if issubclass(kind, datasets.VisionDataset) and n != "VisionDataset"}
    if name not in known:
        raise unknown_name("torchvision data set", name, known)
    return known[name]


def _parts(parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> Iterator[tuple[Split, dict[str, Any]]]:
    if "split" in parameters and "split" not in arguments:
        for split, names in _SPLIT_NAMES:
            yield split, {"split": names}
    elif "train" in parameters and "train" not in arguments:
        yield "train", {"train": True}
        yield "test", {"train": False}
    else:
        yield "train", {}


def _construct(name: str, constructor: Any, arguments: dict[str, Any]) -> Any:
    """The part of the data set, or None when it has no split of these names."""
    names = arguments.get("split")
    if isinstance(names, tuple):
        found = (_construct(name, constructor, {**arguments, "split": alias}) for alias in names)
        return next((part for part in found if part is not None), None)
    try:
        return constructor(**arguments)
    except ValueError as error:
        if "split" in arguments and "split" in str(error):
            return None
        raise UsageError(f"torchvision data set {name} refuses its arguments ({error}): see data.kwargs.") from error
    except TypeError as error:
        raise UsageError(f"torchvision data set {name} refuses its arguments ({error}): see data.kwargs.") from error
    except (RuntimeError, OSError) as error:
        raise InputRefused(
            f"torchvision data set {name} is not under {arguments.get('root')} ({str(error).splitlines()[0]}). "
            "Put its files there, or set data.download=true."
        ) from error


def _samples(name: str, part: Any, split: Split) -> Iterator[Sample]:
    if hasattr(part, "samples"):
        for path, target in part.samples:
            yield Sample(f"{split}/{path}", int(target), split, Path(path))
        return
    for i in range(len(part)):
        image, target = part[i][:2]
        if not isinstance(target, int | np.integer) and not (hasattr(target, "ndim") and target.ndim == 0):
            raise UsageError(f"torchvision data set {name} is not image classification: a target is a {type(target).__name__}.")
        yield Sample(f"{name}/{split}/{i:06d}", int(target), split, np.asarray(image))


def _labels(part: Any, samples: list[Sample]) -> tuple[str, ...]:
    num_labels = max((sample.target for sample in samples), default=-1) + 1
    names = [" / ".join(n) if isinstance(n, tuple | list) else str(n) for n in getattr(part, "classes", None) or ()]
    if len(names) >= num_labels and len(set(names)) == len(names):
        return tuple(names)
    return tuple(str(k) for k in range(num_labels))
