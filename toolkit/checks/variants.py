"""The lower precisions of an exported graph: written, checked, and left out where they do not hold.

The float32 graph has passed parity when this begins. Where an int8 graph decides too differently on the validation images, its
most sensitive layers go back to float32 in a fixed order (the first and the last, then depthwise convolutions, whose channels
have few weights to average an error over), and it is tried again.

Legend: N images, C channels, H height, W width, K labels.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from toolkit.backends import OnnxRunner
from toolkit.backends.half import HalfRange, half_values, write_half
from toolkit.backends.noise import edge_images
from toolkit.backends.quantise import Calibration, write_int8
from toolkit.backends.ranges import measure_ranges
from toolkit.backends.write import graph_opset, remove_graph, verify
from toolkit.bundle import GRAPHS, Manifest, Measurement, Report, environment, verdict_of
from toolkit.checks.format_noise import measure_format_noise
from toolkit.checks.metrics import Predictions
from toolkit.checks.parity import ParityLimits
from toolkit.checks.parity_matrix import Outcome, run_matrix
from toolkit.checks.parity_precision import (
    PrecisionLimits,
    accuracy_change,
    half_errors,
    half_reach,
    judged_accuracy,
    runs_agreement,
    sizes,
    soundness,
)
from toolkit.checks.predict import predict
from toolkit.checks.variant_images import Material, load_material, spread
from toolkit.data import ImageSet, Pixels
from toolkit.errors import InputRefused, UsageError, unknown_name

RETREATS: tuple[tuple[str, ...], ...] = ((), ("first", "last"), ("first", "last", "depthwise"))

OPENS = """
import sys, onnxruntime
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variants:
    """How the graphs in lower precisions are made and what they must keep.

    `max_test_images`: as many labelled test images, evenly chosen, decide on accuracy.
    """

    fp16: HalfRange = field(default_factory=HalfRange)
    int8: Calibration = field(default_factory=Calibration)
    limits: PrecisionLimits = field(default_factory=PrecisionLimits)
    max_test_images: int = 2000

    def __post_init__(self) -> None:
        if self.max_test_images < 10:
            raise UsageError(f"variants: max_test_images is {self.max_test_images}; accuracy needs at least 10 images.")

    @property
    def num_train(self) -> int:
        """How many training images are needed."""
        return max(self.fp16.num_images, self.int8.num_images)


@dataclass(frozen=True, eq=False)
class Variant:
    """A graph in a lower precision: where it lies (if it was shipped) and the report `parity.<precision>` on it."""

    precision: str
    path: Path
    report: Report
    seconds: float

    @property
    def shipped(self) -> bool:
        """Whether it passed; otherwise no file is left."""
        return self.report.verdict == "pass"

    @property
    def reason(self) -> str:
        """Why it is not shipped: every limit that is broken or undecided."""
        explained = self.report.details.get("limits", {})
        broken = [m for m in self.report.measurements if m.limit is not None and m.passed is not True]
        reasons = [f"{_stated(m)} {explained.get(m.name, {}).get('advice', '')}".strip() for m in broken]
        return self.report.details.get("reason") or " ".join(reasons)


def ordered(precisions: Sequence[str]) -> list[str]:
    """The precisions asked for, fp32 first whether named or not. Raises `UsageError` for an unknown one."""
    for precision in precisions:
        if precision not in GRAPHS:
            raise unknown_name("precision", str(precision), GRAPHS)
    return [precision for precision in GRAPHS if precision == "fp32" or precision in precisions]


def variant_maker(
    reference: nn.Module,
    images_NCHW: np.ndarray,
    data: ImageSet,
    manifest: Manifest,
    *,
    variants: Variants,
    limits: ParityLimits,
) -> "VariantMaker":
    """What makes the variants of `reference` (deployed); `images_NCHW` (float32 pixels) are the images of parity.

    Raises `InputRefused` when `data` has other labels than the model, or no training or no test images.
    """
    material = load_material(data, manifest, num_train=variants.num_train, num_test=variants.max_test_images)
    return VariantMaker(reference, images_NCHW, material, manifest.labels, variants, limits)


@dataclass(frozen=True, eq=False)
class VariantMaker:
    """One model with everything that its graphs in lower precisions are made from and compared with."""

    reference: nn.Module
    images_NCHW: np.ndarray
    material: Material
    labels: tuple[str, ...]
    variants: Variants
    limits: ParityLimits

    def make(self, graph: Path, precisions: Sequence[str]) -> list[Variant]:
        """Write the lower `precisions` beside the float32 `graph`, which passed parity, and check each.

        A variant that cannot be made, or does not hold, is logged and its file removed; its report says why.
        """
        makers = {"fp16": self._fp16, "int8": self._int8}
        made = []
        for precision in precisions:
            path, started = graph.with_name(GRAPHS[precision]), time.perf_counter()
            try:
                report = makers[precision](graph, path)
            except InputRefused as refusal:
                report = Report(f"parity.{precision}", (), "fail", (), {"reason": str(refusal)}, environment())
            variant = Variant(precision, path, report, time.perf_counter() - started)
            if not variant.shipped:
                remove_graph(path)
                log.warning("The graph in %s is not shipped: %s", precision, variant.reason)
            made.append(variant)
        return made

    def _fp16(self, graph: Path, path: Path) -> Report:
        """Write and check the float16 graph."""
        options, limits = self.variants.fp16, self.variants.limits
        edges_NCHW = edge_images(self.images_NCHW.shape[1:])
        train_NCHW = spread(self.material.train_NCHW, options.num_images)
        facts = write_half(graph, path, np.concatenate([train_NCHW, edges_NCHW]), limits=options)
        self._require_sound(graph, path)
        every_NCHW = np.concatenate([self.images_NCHW, edges_NCHW]).astype(np.float32)
        values = measure_ranges(onnx.load(graph), every_NCHW).values
        reach = max((values.get(name, 0.0) for name in half_values(path)), default=0.0)
        outcomes, _ = run_matrix(path, every_NCHW, batches=self.limits.batches, num_labels=len(self.labels))
        measured = [*soundness(outcomes), half_reach(min(reach, float(np.finfo(np.float32).max)))]
        details: dict[str, Any] = {"kept_fp32": list(facts.kept), "num_casts": facts.num_casts}
        if all(m.passed for m in measured):
            noise = measure_format_noise(self.reference, every_NCHW, num_runs=self.limits.num_runs)
            measured += half_errors(noise, outcomes, k=self.limits.k_fail, limits=limits)
        measured.append(Measurement("nodes_kept", float(len(facts.kept)), "nodes", n=facts.num_nodes))
        return self._report("fp16", (graph, path), measured, details, outcomes)

    def _int8(self, graph: Path, path: Path) -> Report:
        """Write the int8 graph, with as many layers in float32 as it needs, and check it."""
        calibration = self.variants.int8
        train_NCHW = spread(self.material.train_NCHW, calibration.num_images)
        attempts: list[dict[str, Any]] = []
        facts = None
        for retreat in RETREATS:
            latest = write_int8(graph, path, train_NCHW, calibration=calibration, keep=retreat)
            if facts is not None and len(latest.kept) == len(facts.kept):
                continue
            facts = latest
            self._require_sound(graph, path)
            attempts.append({"kept": list(retreat), **self._decides(graph, path)})
            if attempts[-1]["holds"]:
                break
        assert facts is not None
        outcomes, _ = run_matrix(path, self.images_NCHW, batches=self.limits.batches, num_labels=len(self.labels))
        measured = soundness(outcomes)
        if all(m.passed for m in measured):
            measured.append(runs_agreement(outcomes, limits=self.variants.limits))
        measured.append(Measurement("nodes_kept", float(len(facts.kept)), "nodes", n=facts.num_quantised + len(facts.kept)))
        details = {"kept_fp32": list(facts.kept), "calibration": facts.settings, "attempts": attempts}
        return self._report("int8", (graph, path), measured, details, outcomes)

    def _decides(self, graph: Path, path: Path) -> dict[str, Any]:
        """How the graph decides on the images to choose on, and whether that is near enough."""
        pixels, limits = self.material.choosing, self.variants.limits
        found = {m.name: m.value for m in accuracy_change(self._predict(graph, pixels), self._predict(path, pixels))}
        agreement, change = found["top1_agreement"] or 0.0, found["accuracy.difference"] or 0.0
        holds = agreement >= limits.min_agreement and change >= -limits.margin
        return {"top1_agreement": agreement, "accuracy_difference": change, "num_images": len(pixels), "holds": holds}

    def _report(
        self,
        precision: str,
        graphs: tuple[Path, Path],
        measured: list[Measurement],
        details: dict[str, Any],
        outcomes: Sequence[Outcome],
    ) -> Report:
        """The report, with accuracy on the test images where the graph is sound."""
        explained: Mapping[str, Any] = {}
        if all(m.passed is not False for m in measured if m.name in ("finite", "batches_refused")):
            found = accuracy_change(*(self._predict(graph, self.material.test) for graph in graphs))
            by = "interval" if precision == "int8" else "value"
            judged, explained = judged_accuracy(found, limits=self.variants.limits, by=by)
            measured = [*measured, *judged, *sizes(*graphs)]
        details |= {"limits": explained, "data": self.material.data, "refusals": [o.refusal for o in outcomes if o.refusal]}
        return Report(f"parity.{precision}", (), verdict_of(measured), tuple(measured), details, environment())

    def _predict(self, path: Path, pixels: Pixels) -> Predictions:
        logits_NK = predict(OnnxRunner(path), pixels)
        columns = [self.labels.index(label) for label in pixels.labels]
        return Predictions.from_logits(logits_NK[:, columns], pixels.targets_N.numpy())

    def _require_sound(self, graph: Path, path: Path) -> None:
        """Raise `InputRefused` unless the graph keeps the contract of the float32 one and onnxruntime opens it alive."""
        survives = subprocess.run([sys.executable, "-c", OPENS, str(path)], capture_output=True, text=True, check=False)
        if survives.returncode < 0:
            raise InputRefused(f"onnxruntime crashes (signal {-survives.returncode}) when it opens the graph")
        shape_CHW = self.images_NCHW.shape[1:]
        verify(path, opset=graph_opset(graph), shape_CHW=shape_CHW, num_labels=len(self.labels))


def _stated(measurement: Measurement) -> str:
    within = "" if measurement.interval is None else " (95% interval {:.4g} to {:.4g})".format(*measurement.interval)
    return f"{measurement.name} is {measurement.value:.4g}{within}, must be {measurement.limit}."
