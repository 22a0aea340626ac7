"""The record of how a bundle was made: the recipe in YAML, the code's commit, the package versions.

The recipe is the stage's own arguments, not the whole composed config: places (store, run directory, data root) and
machine settings (workers, progress) say nothing about the result and would give equal work unequal digests on two
machines. The data set stands in the lineage as a fingerprint of its content.
"""

import dataclasses
import functools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit import __version__
from toolkit.bundle.manifest import Lineage
from toolkit.bundle.report import package_versions


def lineage(
    stage: str, *, parents: Sequence[str] = (), data_fingerprint: str | None = None, recipe: Mapping[str, Any] | None = None
) -> Lineage:
    """The lineage of a bundle that `stage` makes now, from bundles `parents` (digests), by `recipe` (its arguments)."""
    commit, dirty = git_state()
    return Lineage(
        stage=stage,
        parents=tuple(parents),
        data_fingerprint=data_fingerprint,
        recipe=recipe_yaml(recipe or {}),
        git_commit=commit,
        git_dirty=dirty,
        packages={"model-upgrade-toolkit": __version__, **package_versions()},
    )


def recipe_yaml(recipe: Mapping[str, Any]) -> str:
    """`recipe` as YAML with sorted keys: dataclasses become mappings with a `kind`, paths only their last part."""
    return yaml.safe_dump(_plain(recipe), sort_keys=True, default_flow_style=False) if recipe else ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, functools.partial):
        return {"kind": value.func.__name__, **{key: _plain(entry) for key, entry in value.keywords.items()}}
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    raise TypeError(f"a recipe holds plain values, dataclasses and functions; found {type(value).__name__}")


@functools.cache
def git_state() -> tuple[str | None, bool]:
    """The commit of the toolkit's own source checkout and whether it has uncommitted changes; (None, False) when installed.

    An installed package may lie inside somebody's repository, whose commit says nothing of this code: its files must be
    tracked there.
    """
    here = str(Path(__file__).parent)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "lineage.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False
