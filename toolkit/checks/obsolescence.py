"""Has the world around a bundle moved on? Versions it was made with against those installed, and whether it still works here.

A model ages without any change of its data: the framework that wrote it is no longer patched, its operator set leaves
support, its library renames a layer. What can be run is run: the module is restored, the golden answers are asked for again,
and, where the exporting packages have changed since, the export is tried.

Legend: N images, K labels.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import load_file

from toolkit.backends import graph_opset, open_runner, write_onnx
from toolkit.bundle import GOLDEN, ONNX, Bundle
from toolkit.bundle.report import package_versions
from toolkit.data import render
from toolkit.errors import ToolkitError
from toolkit.models import Deployed, restore
from toolkit.models.restoring import GRAPH_ONLY

EXPORTERS = ("torch", "onnx", "onnxscript")
MAJOR_COUNTS = 10
GOLDEN_TOLERANCE = 0.01


@dataclass(frozen=True)
class Obsolescence:
    """What has aged. `packages`: name -> (made with, installed, releases behind); `broken`: what no longer works, in words.

    `opset` is the graph's and `newest_opset` onnx's own; None without a graph. `tried` says what was run and with what result.
    """

    packages: dict[str, tuple[str, str, int]]
    opset: int | None
    newest_opset: int
    tried: dict[str, str]
    broken: tuple[str, ...]

    @property
    def releases_behind(self) -> int:
        """The most that any package is behind, in minor releases; a major one counts as ten."""
        return max((behind for _, _, behind in self.packages.values()), default=0)

    def to_details(self) -> dict[str, Any]:
        """As plain data for a report."""
        packages = [{"name": n, "made_with": m, "installed": i, "behind": b} for n, (m, i, b) in self.packages.items()]
        graph = {"opset": self.opset, "newest_opset": self.newest_opset}
        return {"packages": packages, **graph, "tried": self.tried, "broken": list(self.broken)}


def obsolescence(bundle: Bundle) -> Obsolescence:
    """Compare versions and try what a bundle must be able to do: be restored, answer as before, be exported again."""
    here = package_versions()
    made = bundle.manifest.lineage.packages
    packages = {name: (made[name], here[name], releases_behind(made[name], here[name])) for name in made if name in here}
    attempts: dict[str, Callable[[], str]] = {"preprocessing": lambda: _prepares(bundle)}
    if bundle.manifest.architecture.key != GRAPH_ONLY:
        attempts["restore"] = lambda: _restores(bundle)
        attempts["export"] = lambda: _exports(bundle, made, here)
    attempts["answers"] = lambda: _answers(bundle)
    tried, broken = {}, []
    for name, attempt in attempts.items():
        try:
            tried[name] = attempt()
        except ToolkitError as error:
            tried[name] = f"fails: {error}"
            broken.append(f"{name} {tried[name]}")
    opset = graph_opset(bundle.file(ONNX)) if bundle.has(ONNX) else None
    return Obsolescence(packages, opset, onnx.defs.onnx_opset_version(), tried, tuple(broken))


def releases_behind(made_with: str, installed: str) -> int:
    """Minor releases between two versions, a major one counted as ten; 0 when the installed one is not newer."""
    (old_major, old_minor), (new_major, new_minor) = _release(made_with), _release(installed)
    return max(0, MAJOR_COUNTS * (new_major - old_major) + new_minor - old_minor if new_major >= old_major else 0)


def _release(version: str) -> tuple[int, int]:
    major, minor = ([int(number) for number in re.findall(r"\d+", version)[:2]] + [0, 0])[:2]
    return major, minor


def _prepares(bundle: Bundle) -> str:
    render(np.full((48, 64, 3), 127, np.uint8), bundle.manifest.preprocessing)
    return "works"


def _restores(bundle: Bundle) -> str:
    restore(bundle)
    return "works"


def _exports(bundle: Bundle, made: Any, here: dict[str, str]) -> str:
    if all(made.get(name) == here.get(name) for name in EXPORTERS) and bundle.has(ONNX):
        return "was exported with the packages installed here"
    manifest = bundle.manifest
    with tempfile.TemporaryDirectory(prefix="toolkit-obsolescence-") as folder:
        deployed = Deployed(restore(bundle), manifest.preprocessing)
        write_onnx(deployed, Path(folder) / ONNX, preprocessing=manifest.preprocessing, labels=manifest.labels)
    return "works"


def _answers(bundle: Bundle) -> str:
    """The golden images again; where there are none, a grey one, whose answer must be finite."""
    runner = open_runner(bundle)
    if not bundle.has(GOLDEN):
        height, width = bundle.manifest.preprocessing.size_px
        grey_NCHW = np.full((1, bundle.manifest.preprocessing.num_channels, height, width), 127, np.float32)
        if not np.isfinite(runner(grey_NCHW)).all():
            raise _Broken("its outputs are not finite")
        return "finite (the bundle has no golden images)"
    golden = load_file(bundle.file(GOLDEN))
    error_NK = runner(golden["images"]) - golden["logits"]
    share = float(np.abs(error_NK).max() / max(float(np.sqrt((golden["logits"] ** 2).mean())), 1e-12))
    if not share <= GOLDEN_TOLERANCE:
        raise _Broken(f"its golden answers differ by {share:.1%} of their size, at most {GOLDEN_TOLERANCE:.0%} is rounding")
    return f"as the golden answers (largest difference {share:.1e} of their size)"


class _Broken(ToolkitError):
    """The bundle runs and answers wrongly."""
