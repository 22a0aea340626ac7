"""A model that comes in as it is, a graph or a program without a module behind it, ready to be stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bundle import Architecture, Contract, Measurement, Preprocessing


@dataclass(frozen=True, eq=False)
class AsFound:
    """Its files by their names in the bundle, what it takes and returns, how it was made, and the evidence."""

    architecture: Architecture
    num_labels: int
    preprocessing: Preprocessing
    contract: Contract
    files: Mapping[str, Path]
    recipe: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    details: Mapping[str, Any]
