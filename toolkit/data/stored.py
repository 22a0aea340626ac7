"""Image files that are no files of their own on this machine: objects in a store, members of an archive."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeAlias

import numpy as np


class Stored(ABC):
    """The bytes of one image file, wherever they lie. `str()` names it in messages; equal objects have equal bytes."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> bytes:
        """The whole file. Raises `InputRefused` where it is gone or cut short, `EnvironmentProblem` where none can reach it."""

    @abstractmethod
    def digest(self) -> str:
        """The sha256 of the bytes, 64 hexadecimal digits. Raises as `read` does."""

    @abstractmethod
    def prepare(self) -> None:
        """Bring the bytes near, so that a `read` soon after does not wait for a network. Raises as `read` does."""


Source: TypeAlias = Path | np.ndarray | Stored
