"""Stage `export`.

Parity is the postcondition: the graph is written beside the store, compared with the module it came from on real images, and
becomes a bundle only when it passed. A failed export leaves a report and nothing else.
"""

import logging
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from toolkit.backends import EagerRunner, write_onnx
from toolkit.bundle import GOLDEN, ONNX, Bundle, Measurement, Report, Store, environment, lineage, recipe_yaml
from toolkit.checks.parity import ParityLimits, parity
from toolkit.data import ImageSet, Pixels, load_pixels
from toolkit.errors import CheckFailed, Undecided, UsageError
from toolkit.models import Deployed, pixel_contract, restore

logger = logging.getLogger(__name__)

NUM_PARITY_IMAGES = 64


def export(
    bundle: Bundle, *, store: Store, data: ImageSet, opset: int = 20, limits: ParityLimits | None = None, num_golden: int = 8
) -> Bundle:
    """Write a bundle as ONNX and prove that the graph is the model.

    The new bundle holds the weights, `model.onnx` (float32 pixels in, logits out, free batch) and `golden.safetensors`
    (`num_golden` real images and the logits to expect); its reports are `parity` and `export`. Real images come from the
    data's test split. Raises `CheckFailed` or `Undecided`, naming the report, when parity does not pass.
    """
    limits = limits or ParityLimits()
    if num_golden < 1:
        raise UsageError(f"num_golden is {num_golden}; the serving side needs at least 1 golden image")
    recipe = recipe_yaml({"opset": opset, "parity": limits, "num_golden": num_golden})
    parents = (bundle.digest,)
    data_fingerprint = data.fingerprint()
    found = store.find(stage="export", parents=parents, recipe=recipe, data_fingerprint=data_fingerprint)
    if found is not None:
        logger.info("Export: found %s, made before from the same bundle.", found.short)
        return found
    manifest = bundle.manifest
    deployed = Deployed(restore(bundle), manifest.preprocessing)
    images_NCHW = _real_images(data, bundle, at_least=num_golden)
    with tempfile.TemporaryDirectory() as folder:
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
        _require_parity(report, store)
        golden = Path(folder) / GOLDEN
        save_file(_golden(deployed, images_NCHW[:num_golden]), golden)
        made = lineage("export", parents=parents, data_fingerprint=data_fingerprint)
        child = replace(
            manifest,
            contract=pixel_contract(manifest.preprocessing, len(manifest.labels)),
            lineage=replace(made, recipe=recipe),
            files={},
        )
        files = {file.name: file for file in Path(folder).iterdir()}
        exported = store.add(child, weights=bundle.weights(), files=files)
    store.add_report(replace(report, subjects=(exported.digest,)))
    store.add_report(_facts_report(exported, asdict(facts)))
    return exported


def _real_images(data: ImageSet, bundle: Bundle, *, at_least: int) -> np.ndarray:
    """Up to 64 images of the test split (evenly spaced), as float32 pixels images_NCHW."""
    split = data.split("test")
    if len(split) < at_least:
        raise UsageError(f"data '{data.name}' has {len(split)} test images; export needs at least {at_least}.")
    step = max(1, len(split) // NUM_PARITY_IMAGES)
    chosen = replace(split, samples=split.samples[::step][:NUM_PARITY_IMAGES])
    pixels: Pixels = load_pixels(chosen, bundle.manifest.preprocessing)
    return pixels.images_NCHW.numpy().astype(np.float32)


def _require_parity(report: Report, store: Store) -> None:
    if report.verdict == "pass":
        return
    path = store.add_report(replace(report, check="parity.failed"))
    broken = "; ".join(f"{m.name} is {m.value:.4g}, limit {m.limit}" for m in report.measurements if m.limit and not m.passed)
    kind = CheckFailed if report.verdict == "fail" else Undecided
    raise kind(f"The exported graph is not the model: {broken}. No bundle was made; the report is {path}.")


def _golden(deployed: Deployed, images_NCHW: np.ndarray) -> dict[str, torch.Tensor]:
    """Inputs and the float64 answers rounded to float32, for the serving side to repeat with onnxruntime and numpy alone."""
    logits_NK = EagerRunner(deployed, dtype="float64")(images_NCHW).astype(np.float32)
    return {"images": torch.from_numpy(images_NCHW), "logits": torch.from_numpy(logits_NK)}


def _facts_report(bundle: Bundle, facts: dict) -> Report:
    seconds = [Measurement(f"seconds.{phase}", value, "s") for phase, value in facts.pop("seconds").items()]
    measurements = (*(Measurement(name, float(value)) for name, value in facts.items()), *seconds)
    return Report("export", (bundle.digest,), "pass", measurements, {}, environment())
