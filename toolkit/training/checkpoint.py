"""Checkpoints that survive being killed, and a search that finds the last good one.

Lightning's own writer goes through a temporary file that may lie on another device, does not flush, and reports success
when it was refused permission. Here a checkpoint is written beside its destination, hashed on the way, flushed, read back
and renamed to a name that holds the hash, so a torn or rotten file is recognised by its name alone. Two are kept: where
the newest is damaged, the one before it serves.
"""

import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from toolkit.bundle.atomic import TEMPORARY_PREFIX, environment_errors, sha256_file, sync_directory
from toolkit.errors import EnvironmentProblem, InputRefused

NAME = re.compile(r"(\d{8})-([0-9a-f]{64})\.ckpt")
NUM_KEPT = 2

logger = logging.getLogger(__name__)


class DurableCheckpointIO(CheckpointIO):
    """How Lightning, or anyone, writes and reads one checkpoint file of tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`: the old file or the new one at every moment. Raises `EnvironmentProblem`."""
        temporary, _ = _write(checkpoint, Path(path).parent)
        with environment_errors(Path(path)):
            os.replace(temporary, path)
            sync_directory(Path(path).parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read `path` without running code from it. Raises `InputRefused` naming the file when it cannot be read."""
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch.load raises nine different types on damaged files
            raise InputRefused(f"{path} is not a readable checkpoint ({type(error).__name__}: {error}).") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete `path` when it is there."""
        Path(path).unlink(missing_ok=True)


class Checkpoints:
    """The checkpoints of one run, in `directory`, the newest two."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._io = DurableCheckpointIO()

    def paths(self) -> list[Path]:
        """The checkpoint files, newest first."""
        return sorted((p for p in self.directory.glob("*.ckpt") if NAME.fullmatch(p.name)), reverse=True)

    def save(self, state: dict[str, Any]) -> Path:
        """Write `state` as the newest checkpoint and drop all but the newest two; returns its path."""
        paths = self.paths()
        serial = int(paths[0].name[:8]) + 1 if paths else 0
        temporary, digest = _write(state, self.directory)
        path = self.directory / f"{serial:08d}-{digest}.ckpt"
        with environment_errors(path):
            os.replace(temporary, path)
            sync_directory(self.directory)
            for old in self.paths()[NUM_KEPT:]:
                old.unlink(missing_ok=True)
            for leftover in self.directory.glob(f"{TEMPORARY_PREFIX}*"):
                leftover.unlink(missing_ok=True)
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint whose content has the hash in its name; None when there is no checkpoint at all.

        Raises `InputRefused` when checkpoints are there and all are damaged.
        """
        paths = self.paths()
        for path in paths:
            match = NAME.fullmatch(path.name)
            assert match is not None
            if sha256_file(path) == match[2]:
                return self._io.load_checkpoint(path)
            logger.warning("%s is damaged (its content does not have the hash in its name); trying the one before", path)
        if paths:
            raise InputRefused(
                f"Every checkpoint in {self.directory} is damaged. Start the run again in a new directory (without resume)."
            )
        return None


class _Hashing:
    """A stream that hashes what is written through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return self.stream.write(content)

    def flush(self) -> None:
        self.stream.flush()


def _write(state: dict[str, Any], directory: Path) -> tuple[Path, str]:
    """Write, flush and verify a temporary file in `directory`; returns it and the sha256 of its bytes."""
    with environment_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=directory)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                hashing = _Hashing(stream)
                torch.save(state, hashing)  # pyright: ignore[reportArgumentType]
                stream.flush()
                os.fsync(stream.fileno())
            digest = hashing.sha256.hexdigest()
            if sha256_file(temporary) != digest:
                raise EnvironmentProblem(f"{directory}: a checkpoint read back differs from what was written. Check the disk.")
            os.chmod(temporary, 0o644)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary, digest
