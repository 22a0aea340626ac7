"""Fixtures every test may use."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from toolkit.bundle import Store


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test measures about the machine stays out of the user's cache."""
    os.environ["TOOLKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """No test leaves variables behind: a process started later would take a stray rank for its own and wait for peers."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="session")
def _absl_writes_to_the_terminal() -> None:
    """TensorBoard's logging package closes the stream it found at import when logging is configured anew: pytest's own."""
    with contextlib.suppress(ImportError):
        absl_logging = importlib.import_module("absl.logging")
        absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """No test leaves handlers behind: what a later one logs would be printed into what it captures."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a directory of its own."""
    return Store(tmp_path / "store")
