"""The command line: `toolkit <stage> key=value ...`, the composition root.

This is the only module that knows Hydra. A stage is a function; its config names it in `_target_` and its keys are the
function's parameters, so an unknown override is refused by Hydra or by Python and no schema repeats the signature. Plain
strings become what the annotation asks for: `store=<dir>` a `Store`, `bundle=<alias or digest>` a verified `Bundle`.
Configs are the user's own and may name code; a bundle never may, so nothing read from a bundle passes through here.
"""

import ast
import importlib
import inspect
import os
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

import toolkit.stages
from toolkit import __version__
from toolkit.bundle import Bundle, Report, Store
from toolkit.errors import ToolkitError, UsageError, unknown_name

ALLOWED_TARGETS = ("toolkit.", "torch.", "torchvision.", "lightning.")
POSITIONAL = {"show": "reference", "log": "reference", "rollback": "alias"}
VERDICT_EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 5}
INTERNAL_ERROR = 70
STOPPED = (130, 143)


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Run the command line `argv` (default: the process's own arguments) and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_stages()
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"model-upgrade-toolkit {__version__}")
        sys.exit(0)
    stage, *overrides = arguments
    try:
        _describe_on_help(stage, overrides)
        overrides = _name_positionals(stage, overrides)
    except ToolkitError as error:
        sys.exit(_fail(error))
    sys.exit(_run_hydra(stage, overrides))


def stage_names() -> list[str]:
    """The stages, by the files of `toolkit/stages`."""
    return sorted(module.name for module in pkgutil.iter_modules(toolkit.stages.__path__))


def stage_function(stage: str) -> Callable[..., Any]:
    """The function of a stage: the one that has its module's name. Raises `UsageError` for an unknown stage."""
    if stage not in stage_names():
        raise unknown_name("stage", stage, stage_names())
    return getattr(importlib.import_module(f"toolkit.stages.{stage}"), stage)


def _run_hydra(stage: str, overrides: list[str]) -> int:
    """Compose the stage's config, run it once or as a sweep, and return the exit code (of a sweep: the highest)."""
    codes: list[int] = []
    original = sys.argv

    def task(config: DictConfig) -> None:
        sys.argv = original  # a strategy that starts further processes repeats this command line
        codes.append(_run_job(config))
        if codes[-1] in STOPPED:  # a sweep does not go on with its next job
            raise SystemExit(codes[-1])

    decorated = hydra.main(version_base="1.3", config_path="pkg://toolkit.conf", config_name=stage)(task)
    first = next((at for at, text in enumerate(overrides) if "=" in text and not text.startswith("-")), len(overrides))
    sys.argv = [original[0], *overrides[:first], f"hydra.job.name={stage}", *overrides[first:]]
    try:
        decorated()
    except SystemExit as stopped:  # Hydra's own refusals (unknown override, missing group) end with 1
        return 2 if stopped.code == 1 else int(stopped.code or 0)
    finally:
        sys.argv = original
    return max(codes, default=0)


def _run_job(config: DictConfig) -> int:
    verbose = bool(HydraConfig.get().verbose)
    try:
        return run_stage(config)
    except KeyboardInterrupt:
        return 130
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except Exception as error:
        cause = _root_cause(error)
        if isinstance(cause, ToolkitError):
            return _fail(cause, verbose=verbose)
        if isinstance(cause, (OmegaConfBaseException, InstantiationException, TypeError)) and not _in_stage(cause):
            return _fail(UsageError(str(cause).splitlines()[0]), verbose=verbose)
        traceback.print_exception(cause)
        print(
            f"Internal error: {type(cause).__name__}: {cause}\nThis is a bug of the toolkit; please report it.", file=sys.stderr
        )
        return INTERNAL_ERROR


def run_stage(config: DictConfig) -> int:
    """Instantiate the composed `config`, call its stage and show the result; returns the exit code.

    Raises whatever the stage raises; configuration errors are `UsageError`.
    """
    from toolkit.release.tables import open_console, show_bundle, show_report  # heavy; not for `--help` and completion

    config = config.copy()
    OmegaConf.set_struct(config, False)
    plugins = [_import_plugin(name) for name in config.pop("plugins", None) or ()]
    _refuse_missing(config)
    _refuse_foreign_targets(config, (*ALLOWED_TARGETS, *plugins))
    function = _target(config)
    keys = [str(key) for key in config if key != "_target_"]
    _refuse_unknown(function, keys)
    store = Store(config["store"]) if "store" in config else None
    result = function(**{key: _argument(function, key, config[key], store) for key in keys})
    if isinstance(result, Report):
        show_report(result, open_console())
        for name, path in result.details.get("files", {}).items():
            Console(soft_wrap=True, highlight=False).print(f"{name}: {path}")
        return VERDICT_EXIT_CODES[result.verdict]
    if isinstance(result, Bundle) and store is not None:
        show_bundle(result, store, open_console())
    return 0


def _argument(function: Callable[..., Any], key: str, node: Any, store: Store | None) -> Any:
    """What the stage's annotation asks for: a store, a verified bundle, a path, an instantiated node or the plain value."""
    hint = typing.get_type_hints(function)[key]
    wanted = typing.get_args(hint) or (hint,)
    if Store in wanted:
        return store
    if isinstance(node, str) and Bundle in wanted and store is not None:
        return store.open(node)
    if isinstance(node, str) and Path in wanted and str not in wanted:
        return Path(node)
    return instantiate(node, _convert_="all") if isinstance(node, (DictConfig, ListConfig)) else node


def _target(config: DictConfig) -> Callable[..., Any]:
    module, _, name = str(config["_target_"]).rpartition(".")
    return getattr(importlib.import_module(module), name)


def _refuse_unknown(function: Callable[..., Any], keys: list[str]) -> None:
    known = inspect.signature(function).parameters
    for key in keys:
        if key not in known:
            raise unknown_name(f"setting of {function.__name__}", key, known)


def _refuse_missing(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        needed = ", ".join(f"{key}=..." for key in missing)
        raise UsageError(f"Give {needed} on the command line or in an experiment.")


def _import_plugin(name: str) -> str:
    """Import a module of the user's that registers models, data sets or criteria; returns its prefix for targets."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"plugins: cannot import '{name}' ({error}). Give an importable module, or run where it lies."
        ) from error
    return f"{name}."


def _refuse_foreign_targets(node: Any, allowed: tuple[str, ...]) -> None:
    if isinstance(node, DictConfig):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(allowed):
            raise UsageError(
                f"_target_ '{target}' is outside {', '.join(allowed)}: name its module in plugins=[...] to allow it."
            )
        for key in node:
            if not OmegaConf.is_missing(node, key):
                _refuse_foreign_targets(node._get_node(key), allowed)
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            _refuse_foreign_targets(node._get_node(index), allowed)


def _root_cause(error: BaseException) -> BaseException:
    """The toolkit's own error inside Hydra's wrapping, else the innermost error that Hydra wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ToolkitError):
            return seen
        seen = seen.__cause__
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _in_stage(error: BaseException) -> bool:
    """Whether the error was raised inside a stage, so that it is a fault of the code, not of the configuration."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(f"{os.sep}toolkit{os.sep}stages{os.sep}" in frame.filename for frame in frames)


def _fail(error: ToolkitError, *, verbose: bool = False) -> int:
    if verbose:
        traceback.print_exception(error)
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escaped(str(error))}")
    return error.exit_code


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _name_positionals(stage: str, arguments: list[str]) -> list[str]:
    """`toolkit show production` means `toolkit show reference=production`."""
    stage_function(stage)
    named = POSITIONAL.get(stage)
    if named is None or not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return arguments
    return [f"{named}={arguments[0]}", *arguments[1:]]


def _describe_on_help(stage: str, arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(f"toolkit {stage} [key=value ...]\n\n{inspect.getdoc(stage_function(stage))}\n")


def _print_stages() -> None:
    console = Console(highlight=False)
    console.print(r"[bold]toolkit[/] <stage> \[key=value ...]")
    console.print("Upgrade the vision model you run, and prove that the new one may replace it.\n")
    table = Table.grid(padding=(0, 2))
    for name in stage_names():
        table.add_row(f"  [bold]{name}[/]", _purpose(name))
    console.print(table)
    console.print("\ntoolkit <stage> --help lists a stage's settings; --cfg job prints its composed config; -m sweeps.")


def _purpose(stage: str) -> str:
    """The first line of a stage's docstring, read without importing the stage (imports take seconds)."""
    source = Path(toolkit.stages.__path__[0], f"{stage}.py").read_text(encoding="utf-8")
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return (ast.get_docstring(functions[stage]) or "").split("\n")[0]


if __name__ == "__main__":
    main()
