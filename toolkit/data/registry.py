"""The data sets by name, found from the files: a file `x.py` of this package with a function `x(...) -> ImageSet` is one.

Adding a data set is adding its file (and its two lines in `conf/data/`); nothing is listed anywhere.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import toolkit.data
from toolkit.data.images import ImageSet
from toolkit.errors import unknown_name


def _found() -> dict[str, Callable[..., ImageSet]]:
    found = {}
    for module in pkgutil.iter_modules(toolkit.data.__path__):
        if module.name == "registry":
            continue
        function = getattr(importlib.import_module(f"toolkit.data.{module.name}"), module.name, None)
        if inspect.isfunction(function) and inspect.signature(function).return_annotation is ImageSet:
            found[module.name] = function
    return found


DATASETS: dict[str, Callable[..., ImageSet]] = _found()


def dataset(name: str) -> Callable[..., ImageSet]:
    """The function that makes data set `name`. Raises `UsageError` with near names for one that is not there."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]
