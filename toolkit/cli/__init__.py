"""The command line: `toolkit <stage> key=value ...`, the composition root.

This package is the only one that knows Hydra. A stage is a function; its config names it in `_target_` and its keys are the
function's parameters, so an unknown override is refused by Hydra or by Python and no schema repeats the signature. Plain
strings become what the annotation asks for: `store=<dir>` a `Store`, `bundle=<alias or digest>` a verified `Bundle`.
Configs are the user's own and may name code; a bundle never may, so nothing read from a bundle passes through here.
"""

import ast
import importlib
import inspect
import itertools
import os
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

import toolkit.stages
from toolkit import __version__
from toolkit.bundle import Bundle, Report, Store
from toolkit.cli import sweeping
from toolkit.cli.arguments import explained, missing_extra, quoted, with_job_name
from toolkit.cli.checking import check, refuse_missing, target
from toolkit.cli.optuna_sweeper import register
from toolkit.cli.sweeping import Outcome
from toolkit.cli.termination import clean_termination
from toolkit.errors import EnvironmentProblem, ToolkitError, UsageError, unknown_name

ALLOWED_TARGETS = ("toolkit.", "torch.", "torchvision.", "lightning.")
POSITIONAL = {"show": ("reference",), "log": ("reference",), "rollback": ("alias",), "diff": ("old", "new")}
VERDICT_EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 5}
INTERNAL_ERROR = 70
GRAVITY = (0, 5, 1, 2, 4, 3, INTERNAL_ERROR, 130, 143)
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
        _require_stage(stage)
        _describe_on_help(stage, overrides)
        overrides = _name_positionals(stage, overrides)
    except ToolkitError as error:
        sys.exit(_fail(error))
    with clean_termination():
        code = _run_hydra(stage, overrides)
    sys.exit(code)


def stage_names() -> list[str]:
    """The stages, by the files of `toolkit/stages`."""
    return sorted(module.name for module in pkgutil.iter_modules(toolkit.stages.__path__))


def stage_function(stage: str) -> Callable[..., Any]:
    """The function of a stage: the one that has its module's name. Raises `UsageError` for an unknown stage."""
    _require_stage(stage)
    return getattr(importlib.import_module(f"toolkit.stages.{stage}"), stage)


def _require_stage(stage: str) -> None:
    if stage not in stage_names():
        raise unknown_name("stage", stage, stage_names())


def _run_hydra(stage: str, overrides: list[str]) -> int:
    """Compose the stage's config, run it once or as a sweep, and return the exit code (of a sweep: the gravest)."""
    outcomes: list[Outcome] = []
    original, start = sys.argv, sweeping.here()

    def task(config: DictConfig) -> Outcome:
        sys.argv = original  # a strategy that starts further processes repeats this command line
        outcome = _run_job(config)
        if sweeping.here() == start:
            outcomes.append(outcome)
        else:
            sweeping.keep(outcome)
        if outcome.code in STOPPED:  # a sweep does not go on with its next job
            raise SystemExit(outcome.code)
        return outcome

    register()
    sweeping.ENDED.clear()
    decorated = hydra.main(version_base="1.3", config_path="pkg://toolkit.conf", config_name=stage)(task)
    sys.argv = [original[0], *with_job_name([quoted(override) for override in overrides], stage)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are, instead of as Hydra's printout
    try:
        decorated()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except Exception as error:
        verbose = any(text.replace(" ", "") == "hydra.verbose=true" for text in overrides)
        return _refused(error, stage, verbose=verbose)
    finally:
        sys.argv = original
    for directory in sweeping.ENDED:
        outcomes += sweeping.kept(directory)
        sweeping.summarise(outcomes, directory)
    return max((outcome.code for outcome in outcomes), default=0, key=GRAVITY.index)


def _refused(error: Exception, stage: str, *, verbose: bool) -> int:
    """What went wrong outside the stage: composing the config, starting a launcher, or making the run directory."""
    if isinstance(error, ToolkitError) or (extra := missing_extra(error)):
        return _fail(error if isinstance(error, ToolkitError) else extra, verbose=verbose)
    if isinstance(error, HydraException):
        return _fail(explained(error, stage), verbose=verbose)
    if isinstance(error, OSError):
        place = error.filename or "the run directory"
        return _fail(
            EnvironmentProblem(f"Cannot write {place}: {error.strerror}. Choose another place with hydra.run.dir=<dir>."),
            verbose=verbose,
        )
    return _fail(UsageError(str(error).splitlines()[0] if str(error) else type(error).__name__), verbose=verbose)


def _run_job(config: DictConfig) -> Outcome:
    verbose = bool(HydraConfig.get().verbose)
    try:
        return run_stage(config)
    except KeyboardInterrupt:
        return Outcome(130)
    except SystemExit as stopped:
        return Outcome(int(stopped.code or 0))
    except Exception as error:
        return Outcome(_failed(_root_cause(error), verbose=verbose))


def _failed(cause: BaseException, *, verbose: bool) -> int:
    """Say what went wrong inside a stage; returns the exit code."""
    if isinstance(cause, ToolkitError):
        return _fail(cause, verbose=verbose)
    if isinstance(cause, torch.OutOfMemoryError):
        return _fail(EnvironmentProblem("The device ran out of memory: lower options.batch_size."), verbose=verbose)
    if isinstance(cause, OSError):
        return _fail(EnvironmentProblem(f"{cause.filename or 'The disk'}: {cause.strerror or cause}."), verbose=verbose)
    if isinstance(cause, (OmegaConfBaseException, InstantiationException)):
        return _fail(UsageError(str(cause).splitlines()[0]), verbose=verbose)
    traceback.print_exception(cause)
    print(f"Internal error: {type(cause).__name__}: {cause}\nThis is a bug of the toolkit; please report it.", file=sys.stderr)
    return INTERNAL_ERROR


def run_stage(config: DictConfig) -> Outcome:
    """Instantiate the composed `config`, call its stage and show the result; returns the outcome, for a sweep in full.

    Raises whatever the stage raises; configuration errors are `UsageError`.
    """
    from toolkit.release.tables import open_console, show_bundle, show_report  # heavy; not for `--help` and completion

    config = config.copy()
    OmegaConf.set_struct(config, False)
    plugins = [_import_plugin(name) for name in config.pop("plugins", None) or ()]
    refuse_missing(config)
    check(config, allowed=(*ALLOWED_TARGETS, *plugins))
    function = target(config)
    keys = [str(key) for key in config if key != "_target_"]
    store = Store(config["store"]) if "store" in config else None
    result = function(**{key: _argument(function, key, config[key], store) for key in keys})
    if isinstance(result, Report):
        show_report(result, open_console())
        for name, path in result.details.get("files", {}).items():
            Console(soft_wrap=True, highlight=False).print(f"{name}: {path}")
        return Outcome(VERDICT_EXIT_CODES[result.verdict])
    if isinstance(result, Bundle) and store is not None:
        show_bundle(result, store, open_console())
        if sweeping.is_sweep():
            return sweeping.outcome_of(result, store)
    return Outcome(0)


def _argument(function: Callable[..., Any], key: str, node: Any, store: Store | None) -> Any:
    """What the stage's annotation asks for: a store, a verified bundle, a path, an instantiated node or the plain value."""
    hint = typing.get_type_hints(function)[key]
    wanted = typing.get_args(hint) or (hint,)
    if Store in wanted:
        return store
    if typing.get_origin(hint) is Sequence and Bundle in wanted and store is not None:
        if not isinstance(node, ListConfig):
            raise UsageError(f"{key} is {node}; give a list: {key}=[<alias or digest>,<alias or digest>].")
        return [store.open(str(reference)) for reference in node]
    if isinstance(node, str) and Bundle in wanted and store is not None:
        return store.open(node)
    if isinstance(node, str) and Path in wanted and str not in wanted:
        return Path(node)
    return instantiate(node, _convert_="all") if isinstance(node, (DictConfig, ListConfig)) else node


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


def _fail(error: ToolkitError, *, verbose: bool = False) -> int:
    if verbose:
        traceback.print_exception(error)
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escaped(str(error))}")
    return error.exit_code


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _name_positionals(stage: str, arguments: list[str]) -> list[str]:
    """`toolkit show production` means `toolkit show reference=production`."""
    names = POSITIONAL.get(stage, ())
    plain = list(itertools.takewhile(lambda argument: "=" not in argument and not argument.startswith("-"), arguments))
    named = [f"{name}={value}" for name, value in zip(names, plain, strict=False)]
    return [*named, *arguments[len(named) :]]


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
