"""The errors a user can act on, each with the exit code of its class.

Every command ends with the same codes: 0 done or passed, 1 a check failed, 2 usage or configuration, 3 input refused
(untrusted, corrupt, incompatible), 4 environment (disk, permission, device, missing extra), 5 undecided. The command
line prints the message of a `ToolkitError` alone, without a traceback, so the message must name the input, say what is
wrong with it and what to do.
"""

import difflib
from collections.abc import Iterable


class ToolkitError(Exception):
    """An error with a message for the user; `exit_code` is the process's exit status."""

    exit_code = 2


class UsageError(ToolkitError, ValueError):
    """A setting is wrong: unknown name, value out of range, options that exclude each other."""

    exit_code = 2


class InputRefused(ToolkitError, ValueError):
    """A file, bundle, checkpoint or data set is untrusted, corrupt or does not fit."""

    exit_code = 3


class EnvironmentProblem(ToolkitError, RuntimeError):
    """The machine stands in the way: disk, permission, device, a package that is not installed."""

    exit_code = 4


class CheckFailed(ToolkitError):
    """A check's verdict is `fail`; the message names the report."""

    exit_code = 1


class Undecided(ToolkitError):
    """A check could not decide; the message says what would let it."""

    exit_code = 5


def missing_extra(package: str, extra: str, purpose: str) -> EnvironmentProblem:
    """The error for an optional dependency that is not installed, naming the extra that brings it."""
    return EnvironmentProblem(
        f"{purpose} needs the package '{package}', which is not installed. "
        f"Install it with: pip install 'model-upgrade-toolkit[{extra}]'"
    )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that no registry holds, with the nearest names that one does hold."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
    )
    return UsageError(f"Unknown {kind} '{name}'. {hint}")
