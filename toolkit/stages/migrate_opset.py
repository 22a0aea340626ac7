"""Stage `migrate_opset`."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from toolkit.backends.adapted import AdaptedRunner
from toolkit.bundle import ONNX, Bundle, Store, lineage, recipe_yaml
from toolkit.checks.parity_graphs import graph_parity
from toolkit.data import ImageSet, load_pixels
from toolkit.errors import CheckFailed, UsageError
from toolkit.migration import convert_opset
from toolkit.models.restoring import GRAPH_ONLY


def migrate_opset(bundle: Bundle, *, store: Store, data: ImageSet, opset: int = 20, num_images: int = 32) -> Bundle:
    """Bring an adopted ONNX graph to a newer opset and prove, on real images of the data, that it answers as before.

    The new bundle holds the converted graph, with the contract, labels and preprocessing of the old one; its report `parity`
    compares the two graphs on `num_images` images. A graph that does not pass becomes no bundle, and the error names the
    report. A bundle with weights is exported again instead.
    """
    manifest = bundle.manifest
    if manifest.architecture.key != GRAPH_ONLY:
        raise UsageError(
            f"bundle {bundle.short} has a torch module: export it again, toolkit export bundle={bundle.short} opset={opset}."
        )
    if num_images < 1:
        raise UsageError(f"num_images is {num_images}; parity needs at least 1 image.")
    recipe = {"opset": opset, "num_images": num_images}
    made = lineage("migrate_opset", parents=(bundle.digest,), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage, parents=made.parents, recipe=recipe_yaml(recipe), data_fingerprint=made.data_fingerprint
    )
    if found is not None and "parity" in store.reports(found.digest):
        return found
    with tempfile.TemporaryDirectory(prefix="toolkit-opset-") as folder:
        path = Path(folder) / ONNX
        ir_version = convert_opset(bundle.file(ONNX), path, opset=opset)
        before, after = _runner(bundle, bundle.file(ONNX)), _runner(bundle, path)
        images_NCHW = _images(bundle, data, num_images)
        plain = _runner(bundle, bundle.file(ONNX), optimisation="off")
        report = graph_parity(before, after, images_NCHW, unoptimised=plain, subjects=(bundle.digest,))
        if report.verdict != "pass":
            written = store.add_report(replace(report, check="parity.failed"))
            raise CheckFailed(f"In opset {opset} the graph is another model. No bundle was made; the report is {written}.")
        kwargs = {**manifest.architecture.kwargs, "opset": opset, "ir_version": ir_version}
        architecture = replace(manifest.architecture, kwargs=kwargs)
        migrated = store.add(replace(manifest, architecture=architecture, lineage=made), files={ONNX: path})
    store.add_report(replace(report, subjects=(migrated.digest, bundle.digest)))
    return migrated


def _runner(bundle: Bundle, path: Path, *, optimisation: Literal["all", "off"] = "all") -> AdaptedRunner:
    manifest = bundle.manifest
    return AdaptedRunner(
        path, contract=manifest.contract, preprocessing=manifest.preprocessing, threads=1, optimisation=optimisation
    )


def _images(bundle: Bundle, data: ImageSet, num_images: int) -> np.ndarray:
    """Up to `num_images` images, evenly spaced over the test split (or, where there is none, val), images_NCHW."""
    split = data.split("test") if len(data.split("test")) else data.split("val")
    chosen = np.unique(np.linspace(0, max(len(split) - 1, 0), num_images).round().astype(int)) if len(split) else []
    if len(chosen) == 0:
        raise UsageError(f"data '{data.name}' has no test or val images: parity needs real images.")
    pixels = load_pixels(replace(split, samples=tuple(split.samples[i] for i in chosen)), bundle.manifest.preprocessing)
    return pixels.images_NCHW.numpy().astype(np.float32)
