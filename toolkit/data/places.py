"""Places that fsspec knows (`s3://bucket/prefix`, `memory://log`), and what goes wrong there as one clear error.

Credentials, endpoints and the like come from where each store's own tools look for them (environment, profile) or from
fsspec's configuration; the toolkit neither takes nor keeps any.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from toolkit.errors import EnvironmentProblem, InputRefused, ToolkitError, UsageError, missing_extra

EXTRAS = {"s3fs": "s3"}


def is_url(place: Path | str) -> bool:
    """Whether `place` names a store by its protocol."""
    return "://" in str(place)


def local_path(place: Path | str) -> Path | None:
    """The directory or file of this machine that `place` means, also as a `file://` URL; None for another store's URL."""
    text = str(place)
    if text.startswith(("file://", "local://")):
        return Path(url_to_fs(text)[1])
    return None if is_url(text) else Path(text).expanduser()


def opened(url: str, purpose: str) -> tuple[Any, str]:
    """The file system of `url`, and the path in it; `purpose` ("The source s3://...") begins the message where it fails.

    Raises `UsageError` for an unknown protocol, `EnvironmentProblem` where its package is missing.
    """
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = str(error).split("Install ")[-1].split(" ")[0].strip("'\"") or "fsspec"
        if package in EXTRAS:
            raise missing_extra(package, EXTRAS[package], purpose) from error
        raise EnvironmentProblem(f"{purpose} needs a package that is not installed: {error}.") from error
    except ValueError as error:
        raise UsageError(f"{purpose}: {error}. Give a folder, a file or a URL such as s3://bucket/prefix.") from error


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what a store's client raises into one error that names the place: what is missing, refused or out of reach."""
    try:
        yield
    except (ToolkitError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputRefused(f"{url} is not there: correct the URL (bucket, prefix, name) or put the data there.") from error
    except Exception as error:  # every client has types of its own, most of them no OSError
        kind, text = type(error).__name__, (str(error).splitlines() or [""])[0]
        if isinstance(error, PermissionError) or "Credential" in kind or "AccessDenied" in text:
            raise EnvironmentProblem(
                f"{url} cannot be read: no credentials, or none that may ({kind}: {text}). Give the store's own "
                "(for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) and see that they may list and read."
            ) from error
        raise EnvironmentProblem(f"{url} cannot be read ({kind}: {text}).") from error
