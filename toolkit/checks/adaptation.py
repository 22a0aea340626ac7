"""A successor with another contract, made drop-in: an adapter around its graph, proved like an export, kept as its own bundle.

The adapted graph is a bundle without a module, with the contract, labels and preprocessing of the model in service; its parent
is the successor, which stays what it was. The proof is parity: the adapted graph against the successor's module in float64
(its graph, where there is no module) behind the same adaptation, done in numpy. Its resizing is held against PIL's apart.

Legend: N images, C channels, H height, W width, K labels.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.backends import EagerRunner, OnnxRunner
from toolkit.backends.adapted import DTYPES, AdaptedRunner
from toolkit.backends.adapter import columns, compose_adapter, resizing_part
from toolkit.backends.graph_contract import graph_to_run, require_contract
from toolkit.backends.graph_files import read_graph
from toolkit.backends.pixel_front import has_front, model_part
from toolkit.backends.run_onnx import open_session
from toolkit.backends.write import opset_of
from toolkit.bundle import (
    ONNX,
    WEIGHTS,
    Architecture,
    Bundle,
    Limit,
    Manifest,
    Measurement,
    Plan,
    Report,
    Store,
    lineage,
    verdict_of,
)
from toolkit.checks.adaptation_refusals import refusals, require_labels
from toolkit.checks.parity_graphs import graph_parity
from toolkit.checks.preprocessing_parity import PixelLimits
from toolkit.checks.regression_contract import contract_differences
from toolkit.data import ImageSet, load_pixels, render
from toolkit.errors import CheckFailed, UsageError
from toolkit.models import Deployed, pixel_contract, restore
from toolkit.models.restoring import GRAPH_ONLY

NUM_IMAGES = 32

Run = Callable[[np.ndarray], np.ndarray]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adaptation:
    """The bundle to judge: the adapted one, or the candidate where nothing had to or could be adapted, and what was done."""

    bundle: Bundle
    details: dict[str, Any]


def adapt_contract(
    candidate: Bundle, baseline: Bundle, images: ImageSet, *, store: Store, drop_labels: Sequence[str] = ()
) -> Adaptation:
    """Make `candidate` drop-in for the contract of `baseline`, proved on up to 32 images of the test split.

    A candidate whose contract does not break callers stays as it is. `details` hold `steps` (what the adapter does), `refused`
    (why there is none), `of` (the candidate) and `before` (its differences). Raises `InputRefused` where labels are missing or
    to spare, `CheckFailed` where the adapted graph does not answer as the candidate: then no bundle is made.
    """
    before = contract_differences(baseline.manifest, candidate.manifest)
    details: dict[str, Any] = {"of": candidate.digest, "steps": [], "refused": []}
    details["before"] = [dataclasses.asdict(difference) for difference in before]
    if all(difference.severity != "breaking" for difference in before):
        return Adaptation(candidate, details)
    require_labels(baseline, candidate, drop_labels)
    refused = refusals(baseline, candidate)
    if refused:
        logger.warning("Bundle %s cannot be adapted: %s.", candidate.short, "; ".join(refused))
        return Adaptation(candidate, {**details, "refused": list(refused)})
    made = lineage(
        "adapt",
        parents=(candidate.digest,),
        data_fingerprint=images.fingerprint(),
        recipe={"baseline": baseline.digest, "drop_labels": list(drop_labels)},
    )
    wanted, held = baseline.manifest, _held(candidate)
    with tempfile.TemporaryDirectory(prefix="toolkit-adapt-") as folder:
        path = Path(folder) / ONNX
        graph, steps = compose_adapter(_graph(candidate), held=held, wanted=wanted)
        path.write_bytes(graph.SerializeToString(deterministic=True))
        require_contract(path, wanted.contract, wanted.labels)
        report = adapter_parity(path, candidate, baseline, _images(images, wanted))
        if report.verdict != "pass":
            written = store.add_report(dataclasses.replace(report, check="parity.failed"))
            raise CheckFailed(
                f"Adapted to the contract of {baseline.short}, bundle {candidate.short} answers otherwise than by itself. "
                f"No bundle was made; the report is {written}."
            )
        kwargs = {"opset": opset_of(graph), "ir_version": graph.ir_version, "around": candidate.manifest.architecture.key}
        child = dataclasses.replace(wanted, architecture=Architecture(GRAPH_ONLY, kwargs), plan=Plan(), lineage=made, files={})
        adapted = store.add(child, files={ONNX: path})
    details["steps"] = list(steps)
    told = {**report.details, "adapter": list(steps)}
    store.add_report(dataclasses.replace(report, subjects=(adapted.digest, candidate.digest), details=told))
    logger.info("Bundle %s is %s adapted to %s: %s.", adapted.short, candidate.short, baseline.short, "; ".join(steps))
    return Adaptation(adapted, details)


def adapter_parity(path: Path, candidate: Bundle, baseline: Bundle, images_NCHW: np.ndarray) -> Report:
    """The report `parity` on the adapted graph at `path`, on `images_NCHW` as callers of `baseline` prepare them, 0..255."""
    wanted, held = baseline.manifest, _held(candidate)
    after = AdaptedRunner(path, contract=wanted.contract, preprocessing=wanted.preprocessing, threads=1)
    exact, unoptimised = _reference(candidate)
    resized = _Resized(wanted, held)
    report = graph_parity(
        _behind(exact, resized, wanted, held),
        after,
        images_NCHW,
        unoptimised=_behind(unoptimised, resized, wanted, held, rounded=DTYPES[wanted.contract.outputs[0].dtype]),
        subjects=(candidate.digest,),
    )
    measurements = (*report.measurements, *resized.measurements(images_NCHW))
    details = {**report.details, "reference": "the successor behind the same adaptation"}
    return dataclasses.replace(report, verdict=verdict_of(measurements), measurements=measurements, details=details)


class _Resized:
    """The adapter's resizing by itself: callers' pixels (N, C, H, W) to the successor's size; nothing where sizes agree."""

    def __init__(self, wanted: Manifest, held: Manifest) -> None:
        part = resizing_part(wanted.contract.inputs[0], wanted.preprocessing, held.preprocessing)
        self.session = open_session(part, threads=1) if part else None
        self.spec = dataclasses.replace(held.preprocessing, resize="squash")

    def __call__(self, images_NCHW: np.ndarray) -> np.ndarray:
        return images_NCHW if self.session is None else self.session.run(None, {"pixels": images_NCHW.astype(np.float32)})[0]

    def measurements(self, images_NCHW: np.ndarray) -> list[Measurement]:
        """How far the pixels are from those that PIL's resizing makes, in grey levels, on the worst image."""
        if self.session is None:
            return []
        images_NHWC = images_NCHW.round().astype(np.uint8).transpose(0, 2, 3, 1)
        expected_NCHW = np.stack([render(_plain(image), self.spec).transpose(2, 0, 1) for image in images_NHWC])
        levels_N = np.abs(self(images_NCHW) - expected_NCHW.astype(np.float32)).mean(axis=(1, 2, 3))
        limit = Limit("<=", PixelLimits().max_mean_levels, "more is another filter and not another rounding")
        return [Measurement.against("pixel_difference.mean", float(levels_N.max()), limit, unit="levels", n=len(levels_N))]


def _plain(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC


def _behind(run: Run, resized: Run, wanted: Manifest, held: Manifest, *, rounded: type = np.float64) -> Run:
    """`run`, which gives the successor's logits, as callers of the old model are answered, in numpy; probabilities as logs.

    The answers are rounded to the type `rounded`: what that costs is no fault of the adapter's.
    """
    chosen = columns(held.labels, wanted.labels)

    def answer(images_NCHW: np.ndarray) -> np.ndarray:
        logits_NK = run(resized(images_NCHW))[:, chosen]
        if wanted.contract.outputs[0].meaning != "probabilities":
            return logits_NK.astype(rounded)
        powers_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
        shares_NK = (powers_NK / powers_NK.sum(1, keepdims=True)).astype(rounded).astype(np.float64)
        return np.log(np.maximum(shares_NK, np.finfo(np.float32).tiny))

    return answer


def _reference(candidate: Bundle) -> tuple[Run, Run]:
    """The successor by itself, on pixels at its own size: in float64 where it has a module; and its graph unoptimised."""
    manifest = candidate.manifest
    if candidate.has(WEIGHTS):
        exact = EagerRunner(Deployed(restore(candidate), manifest.preprocessing), dtype="float64", threads=1)
        return exact, OnnxRunner(graph_to_run(candidate, "fp32"), threads=1, optimisation="off")
    path = candidate.file(ONNX)
    settings: dict[str, Any] = {"contract": manifest.contract, "preprocessing": manifest.preprocessing, "threads": 1}
    return AdaptedRunner(path, **settings), AdaptedRunner(path, **settings, optimisation="off")


def _graph(candidate: Bundle) -> Any:
    """The successor's graph; its own preprocessing left out, where it stands in front: callers have prepared their images."""
    model = read_graph(candidate.file(ONNX))
    return read_graph(model_part(candidate.file(ONNX))) if has_front(model) else model


def _held(candidate: Bundle) -> Manifest:
    """What `_graph` takes and returns."""
    manifest = candidate.manifest
    if not has_front(read_graph(candidate.file(ONNX))):
        return manifest
    return dataclasses.replace(manifest, contract=pixel_contract(manifest.preprocessing, len(manifest.labels)))


def _images(images: ImageSet, wanted: Manifest) -> np.ndarray:
    """Up to 32 images, evenly spaced over the test split (or, where there is none, val), as callers prepare them."""
    split = images.split("test") if len(images.split("test")) else images.split("val")
    if not len(split):
        raise UsageError(f"data '{images.name}' has no test or val images: parity of the adapter needs real images.")
    chosen = np.unique(np.linspace(0, len(split) - 1, NUM_IMAGES).round().astype(int))
    pixels = load_pixels(dataclasses.replace(split, samples=tuple(split.samples[i] for i in chosen)), wanted.preprocessing)
    return pixels.images_NCHW.numpy().astype(np.float32)
