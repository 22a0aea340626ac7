"""Files that are either whole or absent.

A process may be killed at any instruction. Everything the toolkit keeps is therefore written beside its destination
(same file system), flushed to the disk and renamed: a reader sees the old state or the new one, never a part.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.errors import EnvironmentProblem

TEMPORARY_PREFIX = ".tmp-"


def sha256_file(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that the file is the old one or the new one at every moment.

    Raises `EnvironmentProblem` when the place cannot be written.
    """
    with environment_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


@contextlib.contextmanager
def staging_directory(parent: Path) -> Iterator[Path]:
    """A new directory under `parent`, locked while in use and removed unless it was renamed away.

    The lock lets `clear_leftovers` tell a killed writer's directory from a living one's.
    """
    with environment_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        os.close(descriptor)
        shutil.rmtree(directory, ignore_errors=True)


def replace_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Make `path` a directory of exactly these files; a reader never sees a part of them.

    An older directory is moved away first, so that for a moment there may be none. Raises `EnvironmentProblem` when the place
    cannot be written.
    """
    clear_leftovers(path.parent)
    with staging_directory(path.parent) as staging, environment_errors(path):
        for name, content in files.items():
            (staging / name).write_bytes(content)
            sync_file(staging / name)
        os.chmod(staging, 0o755)
        sync_directory(staging)
        with staging_directory(path.parent) as old:
            if path.exists():
                path.rename(old / path.name)
            staging.rename(path)
        sync_directory(path.parent)


def clear_leftovers(parent: Path) -> list[str]:
    """Remove what killed writers left under `parent`; returns the names removed. Directories in use stay."""
    removed = []
    for path in parent.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
        finally:
            os.close(descriptor)
    return removed


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when absent) for the length of the block."""
    with environment_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def environment_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system refusal (permission, full disk, missing mount) into one error naming the path."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"Cannot write {path}: {error.strerror or error}. Free some space, or choose a place you may write to "
            "(store=<dir>, hydra.run.dir=<dir>)."
        ) from error
