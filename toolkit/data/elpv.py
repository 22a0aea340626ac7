"""Photographs of solar cells (electroluminescence), from the `elpv-dataset` package: real images, a real shift between slices.

2,624 greyscale images of 300×300 px from 44 modules, each with a defect probability and a cell type. A model trained on
monocrystalline cells alone fails on polycrystalline ones, which is what an upgrade is about. The package's own loader is not
called: it decodes everything at once.

Source: Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018. The images may not be used commercially, so whoever loads them is told, once a process.
"""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.images import ImageSet, Sample
from toolkit.data.splits import with_splits
from toolkit.errors import InputRefused, missing_extra

LICENCE = "CC BY-NC-SA 4.0 (images of the ELPV data set; non-commercial)"
LABELS = ("functional", "defective")
DEFECTIVE_FROM = 0.5


def elpv(
    *,
    slices: Sequence[str] | None = None,
    root: Path | str | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> ImageSet:
    """Solar cells as `functional` or `defective` (probability of at least 0.5), with the slices `mono` and `poly`.

    The split (by class and slice) is fixed by the seed before `slices` filters, so a model trained on `slices=["mono"]`
    never saw a test image of the whole. `root` holds `labels.csv` and the images; the installed package's by default.
    Raises `EnvironmentProblem` without the package, `InputRefused` for a label file that does not have its form.
    """
    directory = Path(root) if root is not None else _package_directory()
    samples = [_sample(directory, number, line) for number, line in _lines(directory / "labels.csv")]
    _tell_licence()
    images = ImageSet(
        name="elpv",
        labels=LABELS,
        samples=with_splits(samples, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed),
        licence=LICENCE,
    )
    return images.where(list(slices)) if slices else images


def _package_directory() -> Path:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("elpv-dataset", "demo", "The data set elpv")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(
            f"{path} cannot be read ({error}). Reinstall elpv-dataset, or give root=<its data folder>."
        ) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InputRefused(f"{path} is empty. Reinstall elpv-dataset, or give root=<its data folder>.")
    return lines


def _sample(directory: Path, number: int, line: str) -> Sample:
    try:
        name, probability, cell_type = line.split()
        defective = 0.0 <= float(probability) <= 1.0 and float(probability) >= DEFECTIVE_FROM
    except ValueError as error:
        raise InputRefused(
            f"{directory / 'labels.csv'}, line {number}: '{line.strip()[:80]}' is not 'path probability type'. "
            "Reinstall elpv-dataset."
        ) from error
    return Sample(key=name, target=int(defective), split="train", source=directory / name, slice=cell_type)


@functools.cache
def _tell_licence() -> None:
    print(f"Data set elpv: {LICENCE}. See https://github.com/zae-bayern/elpv-dataset", file=sys.stderr)
