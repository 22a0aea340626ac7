"""Stage `export`.

Parity is the postcondition: the graph is written beside the store, compared with the module it came from on real images, and
becomes a bundle only when it passed. A failed export leaves a report, beside it the part of the graph that shows the fault,
and nothing else.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from toolkit.backends import EagerRunner, ExportFacts, write_onnx
from toolkit.bundle import GOLDEN, ONNX, Bundle, Measurement, Report, Store, environment, lineage, recipe_yaml
from toolkit.checks.parity import ParityLimits, parity, with_edges
from toolkit.checks.parity_members import with_members
from toolkit.checks.parity_repro import repro_files
from toolkit.data import ImageSet, load_pixels
from toolkit.errors import CheckFailed, InputRefused, Undecided, UsageError
from toolkit.models import Deployed, pixel_contract, require_changeable, restore

MAX_PARITY_IMAGES = 60  # with the 4 edge inputs two full batches of 32
MIB = 2**20

DECIDING = ("torch", "onnx", "onnxruntime")  # another version of these is another graph or another parity

log = logging.getLogger(__name__)


def export(
    bundle: Bundle, *, store: Store, data: ImageSet, opset: int = 20, limits: ParityLimits | None = None, num_golden: int = 8
) -> Bundle:
    """Write a bundle as ONNX and prove, on real images of the data, that the graph is the model.

    The new bundle holds the weights, `model.onnx` (float32 pixels in, logits out, free batch) and `golden.safetensors`
    (`num_golden` images as `images`, and the `logits` to expect). Its reports are `parity` and `export`. The same bundle, data
    and settings are not exported twice. A graph that does not pass parity becomes no bundle; the error names the first wrong
    module, the report, and the folder that reproduces the fault.
    """
    require_changeable(bundle, "exported")
    limits = limits or ParityLimits()
    if num_golden < 1:
        raise UsageError(f"num_golden is {num_golden}; the serving side needs at least 1 golden image.")
    recipe = {"opset": opset, "limits": limits, "num_golden": num_golden}
    made = lineage("export", parents=(bundle.digest,), data_fingerprint=data.fingerprint(), recipe=recipe)
    found = store.find(
        stage=made.stage,
        parents=made.parents,
        recipe=recipe_yaml(recipe),
        data_fingerprint=made.data_fingerprint,
        packages=DECIDING,
    )
    if found is not None and "parity" in store.reports(found.digest):
        log.info("Found bundle %s, exported before from the same bundle with the same settings.", found.short)
        return found
    manifest = bundle.manifest
    deployed = Deployed(restore(bundle), manifest.preprocessing)
    images_NCHW = _real_images(data, bundle, at_least=num_golden)
    with tempfile.TemporaryDirectory(prefix="toolkit-export-") as folder:
        path = Path(folder) / ONNX
        facts = write_onnx(
            deployed,
            path,
            preprocessing=manifest.preprocessing,
            labels=manifest.labels,
            opset=opset,
            metadata={"parent": bundle.digest},
        )
        report = parity(deployed, path, images_NCHW, subject=bundle.digest, limits=limits)
        report = with_members(report, deployed, path, images_NCHW, limits)
        _require_parity(report, store, lambda fault: _repro(deployed, path, images_NCHW, fault, limits))
        chosen = np.linspace(0, len(images_NCHW) - 1, num_golden).round().astype(int)
        save_file(_golden(deployed, images_NCHW[chosen]), Path(folder) / GOLDEN)
        child = replace(manifest, contract=pixel_contract(manifest.preprocessing, len(manifest.labels)), lineage=made)
        files = {file.name: file for file in sorted(Path(folder).iterdir())}
        exported = store.add(child, weights=bundle.weights(), files=files)
    store.add_report(replace(report, subjects=(exported.digest, bundle.digest)))
    store.add_report(_export_report(exported, facts))
    if report.details["warning"]:
        log.warning("Parity of bundle %s: %s", exported.short, report.details["warning"])
    log.info("Bundle %s: ONNX opset %d, error %.2f floors.", exported.short, facts.opset, report.value("error_ratio.max"))
    return exported


def _real_images(data: ImageSet, bundle: Bundle, *, at_least: int) -> np.ndarray:
    """Up to 60 images, evenly spaced over the test split (or, where there is none, val), as float32 pixels images_NCHW."""
    split = data.split("test") if len(data.split("test")) else data.split("val")
    if len(split) < at_least:
        raise InputRefused(
            f"data '{data.name}' has {len(split)} test images; {at_least} are needed. Give more data or a smaller num_golden."
        )
    chosen = np.unique(np.linspace(0, len(split) - 1, max(MAX_PARITY_IMAGES, at_least)).round().astype(int))
    pixels = load_pixels(replace(split, samples=tuple(split.samples[i] for i in chosen)), bundle.manifest.preprocessing)
    return pixels.images_NCHW.numpy().astype(np.float32)


def _require_parity(report: Report, store: Store, repro: Callable[[Mapping[str, Any]], Mapping[str, bytes]]) -> None:
    if report.verdict == "pass":
        return
    failed = replace(report, check="parity.failed")
    path = store.add_report(failed)
    broken = [m for m in report.measurements if m.limit is not None and m.passed is not True]
    reasons = "; ".join(f"{m.name} is {m.value:.4g}, limit {m.limit} ({m.limit.reason})" for m in broken if m.limit)
    if report.verdict == "undecided":
        raise Undecided(
            f"Parity cannot be decided: {reasons}. In float32 the model itself is {report.value('float32_share'):.1%} from "
            f"float64, so any error could be rounding: its weights or BatchNorm statistics are ill-conditioned. No bundle was "
            f"made; the report is {path}."
        )
    fault = report.details.get("fault", {})
    sentence = fault.get("sentence", "The graph does not run as asked: " + "; ".join(report.details["refusals"][:1]))
    files = repro(fault) if fault else {}
    if files:
        place = store.attach(failed, "repro", files)
        path = store.add_report(replace(failed, details={**failed.details, "repro": place.name}))
        sentence += f". To see it alone: python {place / 'repro.py'}"
    raise CheckFailed(f"The exported graph is not the model: {reasons}. {sentence}. No bundle was made; the report is {path}.")


def _repro(
    deployed: Deployed, path: Path, images_NCHW: np.ndarray, fault: Mapping[str, Any], limits: ParityLimits
) -> dict[str, bytes]:
    looked_at_NCHW = with_edges(images_NCHW)[fault["images"]]
    return repro_files(deployed, path, looked_at_NCHW, fault, k=limits.k_fail, num_runs=limits.num_runs)


def _golden(deployed: Deployed, images_NCHW: np.ndarray) -> dict[str, torch.Tensor]:
    """Inputs and the float64 answers rounded to float32, for the serving side to repeat with onnxruntime and numpy alone."""
    logits_NK = EagerRunner(deployed, dtype="float64", threads=1)(images_NCHW).astype(np.float32)
    return {"images": torch.from_numpy(images_NCHW), "logits": torch.from_numpy(logits_NK)}


def _export_report(exported: Bundle, facts: ExportFacts) -> Report:
    """What was written and how long each phase took."""
    measurements = (
        Measurement("opset", facts.opset),
        Measurement("num_nodes", facts.num_nodes),
        Measurement("size", facts.num_bytes / MIB, unit="MiB"),
        *(Measurement(f"{phase}_time", seconds, unit="s") for phase, seconds in facts.seconds.items()),
    )
    details = {"method": facts.method, "ir_version": facts.ir_version, "external_data": facts.external_data}
    return Report("export", (exported.digest,), "pass", measurements, details, environment())
