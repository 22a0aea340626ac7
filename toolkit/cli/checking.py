"""A composed config is held against the signatures it will call, before anything runs.

Hydra finds a wrong key when it instantiates the node, which in an upgrade may be after an hour of training. Every node that
names a target is therefore checked first: the target is allowed, its keys are parameters, its plain values have the
annotated type.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from toolkit.bundle import Bundle, Store
from toolkit.errors import UsageError, unknown_name

OWN = "toolkit."
SPECIAL = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}
PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def target(config: DictConfig) -> Callable[..., Any]:
    """The function or class that a node's `_target_` names. Raises `UsageError` when there is none."""
    module, _, name = str(config["_target_"]).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"_target_ '{config['_target_']}' does not exist ({error}).") from error


def check(node: Any, *, allowed: tuple[str, ...], path: str = "") -> None:
    """Raise `UsageError` for the first target outside `allowed`, unknown key or value of the wrong type under `node`."""
    if isinstance(node, DictConfig):
        named = node.get("_target_")
        if named is not None:
            if not str(named).startswith(allowed):
                raise UsageError(
                    f"_target_ '{named}' is outside {', '.join(allowed)}: name its module in plugins=[...] to allow it."
                )
            _check_call(node, path)
        for key in node:
            check(node[key], allowed=allowed, path=_join(path, str(key)))
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            check(item, allowed=allowed, path=f"{path}[{index}]")


def refuse_missing(config: DictConfig) -> None:
    """Raise `UsageError` naming every mandatory value that was not given."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        needed = ", ".join(f"{key}=..." for key in missing)
        raise UsageError(f"Give {needed} on the command line or in an experiment.")


def _check_call(node: DictConfig, path: str) -> None:
    called = target(node)
    parameters = inspect.signature(called).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or not str(node["_target_"]).startswith(OWN):
        return
    hints = typing.get_type_hints(called)
    for key in (str(key) for key in node if key not in SPECIAL):
        where = _join(path, key)
        if key not in parameters:
            owner = getattr(called, "__name__", "this")
            raise unknown_name(f"setting of {owner}", where, [_join(path, name) for name in parameters])
        if key in hints and not fits(hints[key], node[key]):
            raise UsageError(f"{where} is {_shown(node[key])}; it must be {described(hints[key])}.")


def fits(hint: Any, value: Any) -> bool:
    """Whether a config value can become what the annotation `hint` asks for; what cannot be judged here fits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is None:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if value is None:
        return hint is type(None)
    if hint in PLAIN:
        return isinstance(value, (int, float) if hint is float else hint) and (hint is bool or not isinstance(value, bool))
    if hint in (Path, Store, Bundle):
        return isinstance(value, str) or (hint is not Path and isinstance(value, DictConfig))
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        item = arguments[0] if arguments else Any
        return isinstance(value, ListConfig) and all(fits(item, entry) for entry in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, DictConfig)
    return not isinstance(value, (int, float, str, ListConfig)) if isinstance(hint, type) else True


def described(hint: Any) -> str:
    """What to type for the annotation `hint`, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(described(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if hint is type(None):
        return "null"
    if hint in PLAIN:
        return PLAIN[hint]
    if hint is Path:
        return "a path"
    if hint is Bundle:
        return "an alias or a digest"
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list like [{described(arguments[0]) if arguments else '...'}, ...]"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping like {key: value}"
    return f"settings of {getattr(hint, '__name__', hint)}"


def _shown(value: Any) -> str:
    return repr(OmegaConf.to_container(value) if isinstance(value, (DictConfig, ListConfig)) else value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
