"""Numbers as people read them, the same in the terminal, the model card and the report page.

Measurement names carry their meaning (`balanced_accuracy.difference[slice=mono]`); here they are taken apart once.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.bundle import Limit, Measurement, Report

NAME = re.compile(r"(?P<metric>[a-z0-9_.]+?)(\.(?P<side>baseline|candidate|difference|ratio))?(\[(?P<scope>[^\]]+)\])?")

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "roc_auc": "ROC-AUC",
    "nll": "Negative log-likelihood",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "recall": "Recall",
    "precision": "Precision",
    "negative_flip_rate": "Negative flips",
    "positive_flip_rate": "Positive flips",
    "relative_negative_flip_rate": "Negative flips, relative to chance",
    "confident_negative_flips": "Confident negative flips",
    "mcnemar_p": "McNemar p-value",
    "worse_slices": "Slices shown to be worse",
    "untested_slices": "Slices too small to test",
    "attribution_agreement.negative": "Same places looked at, negative flips",
    "attribution_agreement.positive": "Same places looked at, positive flips",
    "attribution_agreement.agreement": "Same places looked at, both right",
    "pinned_negative_flips": "Negative flips on pinned images",
    "alert_threshold": "Threshold of the service",
    "alert_recall": "Recall at the threshold",
    "alert_precision": "Precision at the threshold",
    "alert_rate": "Images acted on",
    "alert_negative_flip_rate": "Negative flips of the action",
    "churn": "Changed answers",
    "excess_churn": "Changed answers beyond need",
    "latency_median": "Latency, median",
    "latency_p95": "Latency, 95th percentile",
    "test_images_seen": "Test images seen in training",
    "throughput": "Throughput, batches of 32",
    "memory": "Memory, peak",
    "load_time": "Load time",
    "macs": "Multiply-accumulates",
    "parameters": "Parameters",
    "size": "File size",
    "latency_disturbed": "Disturbed calls, left out",
    "weights_size": "Weights file",
    "latency_goal.wanted": "Latency asked for",
    "latency_goal.predicted": "Latency predicted",
    "latency_goal.measured": "Latency measured before recovery",
    "latency_goal.measured_to_wanted": "Latency measured to asked for",
    "accuracy_goal.drop": "Accuracy lost",
    "error_ratio.max": "Error, worst image",
    "error_ratio.p99": "Error, 99th percentile",
    "error_ratio.p90": "Error, 90th percentile",
    "error_ratio.median": "Error, median",
    "max_error.onnxruntime_off": "Largest error, onnxruntime unoptimised",
    "max_error.onnxruntime_basic": "Largest error, onnxruntime's basic optimiser",
    "max_error.onnxruntime_all": "Largest error, onnxruntime",
    "max_error.torch_float32": "Largest error, torch float32",
    "float32_share": "Float32's own error, relative",
    "pixel_difference.mean": "Pixels apart, mean of the worst image",
    "pixel_difference.max": "Pixels apart, most",
    "pixel_difference.share_over_one": "Pixels more than one level apart",
    "front_time": "Preprocessing in the graph, an image",
    "logit_difference.max": "Logits apart, most",
    "logit_difference.mean": "Logits apart, mean",
    "batches_refused": "Batch sizes refused",
    "ties": "Answers within rounding",
    "decisions_changed": "Answers that differ beyond rounding",
    "top1_agreement": "Same answer",
    "ties.top5": "First five within rounding",
    "decisions_changed.top5": "First five differ beyond rounding",
    "top5_agreement": "Same first five",
    "finite": "All outputs finite",
    "half_share": "What rounding to float16 moves, relative",
    "half_largest": "Largest value held in float16",
    "runs_agreement": "Same answer at every optimiser level and batch size",
    "nodes_kept": "Layers kept in float32",
    "parity.passed": "Export parity",
    "contract.labels_identical": "Labels identical",
    "contract.breaking": "Breaking contract changes",
    "contract.compatible": "Compatible contract changes",
    "embedding.auc": "Telling new images from old (AUC)",
    "embedding.mmd": "Distance of the embeddings (MMD²)",
    "image.ks": "Images themselves, largest KS",
    "answers.psi": "Answers (PSI less chance)",
    "confidence.ks": "Confidence (KS)",
    "labels.psi": "True labels (PSI less chance)",
    "accuracy.loss": "Accuracy, loss",
    "balanced_accuracy.loss": "Balanced accuracy, loss",
    "roc_auc.loss": "ROC-AUC, loss",
    "estimated.loss": "Accuracy, loss estimated from confidence",
    "estimated.loss_atc": "Accuracy, loss estimated by ATC",
    "samples.new": "New images",
    "samples.reference": "Reference images",
    "runs_here": "Works here",
    "releases_behind": "Packages behind those installed",
    "evidence.answers": "Answers",
    "evidence.confidence": "Confidence",
    "evidence.distance": "Distance of images",
    "evidence.labels": "True labels",
    "evidence.errors": "Wrong answers",
    "evidence.discordant": "Against the former model",
    "samples.seen": "Samples",
    "samples.with_truth": "With a known truth",
    "samples.refused": "Refused",
    "opset_behind": "Operator set behind the newest",
}
SCORES = {"accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "recall", "precision", "alert_recall", "alert_precision"}
SHARES = {
    "alert_rate",
    "alert_negative_flip_rate",
    "negative_flip_rate",
    "positive_flip_rate",
    "churn",
    "excess_churn",
    "top1_agreement",
    "runs_agreement",
    "top5_agreement",
    "accuracy.loss",
    "balanced_accuracy.loss",
    "estimated.loss",
    "estimated.loss_atc",
}
FLAGS = {
    "parity.passed": ("failed", "passed"),
    "contract.labels_identical": ("no", "yes"),
    "finite": ("no", "yes"),
    "runs_here": ("no", "yes"),
}
LOWER_IS_BETTER = {
    *("nll", "brier", "ece", "loss"),
    *("latency_median", "latency_p95", "macs", "parameters", "size", "weights_size", "memory", "load_time"),
}
ONE_PROCESS = {"throughput", "memory", "load_time"}  # one observation each: a tenth either way is no difference
VERDICTS = {"pass": "passed", "fail": "failed", "undecided": "undecided"}


@dataclass(frozen=True)
class Name:
    """A measurement's name taken apart: `side` and `scope` (`slice=mono`) may be empty."""

    metric: str
    side: str
    scope: str

    @property
    def title(self) -> str:
        """The metric and its scope in words."""
        words = TITLES.get(self.metric, self.metric.replace("_", " ").replace(".", ": ").capitalize())
        side = {"difference": ", change", "ratio": ", ratio"}.get(self.side, f", {self.side}" if self.side else "")
        return f"{words}{side}{f' ({self.where})' if self.scope else ''}"

    @property
    def where(self) -> str:
        """The scope in words: the slice's or label's name, or `all`."""
        return self.scope.partition("=")[2] if self.scope else "all"


@dataclass(frozen=True)
class Row:
    """One metric of old and new in one scope; absent measurements are None. `change` is a difference or a ratio."""

    metric: str
    scope: str
    baseline: Measurement
    candidate: Measurement
    change: Measurement | None

    @property
    def name(self) -> Name:
        return Name(self.metric, "", self.scope)

    @property
    def direction(self) -> str:
        """`better`, `worse` or `same`: same unless the interval of the change leaves no change out."""
        if self.change is None or self.change.value is None:
            return "same"
        neutral = 1.0 if self.change.name.startswith(f"{self.metric}.ratio") else 0.0
        unsure = 0.1 if self.metric in ONE_PROCESS else 0.005
        if neutral and self.change.interval is None and abs(self.change.value - neutral) < unsure:
            return "same"
        low, high = self.change.interval or (self.change.value, self.change.value)
        if low <= neutral <= high:
            return "same"
        return "better" if (low > neutral) != (self.metric in LOWER_IS_BETTER) else "worse"


def parse(name: str) -> Name:
    """Take a measurement's name apart."""
    match = NAME.fullmatch(name)
    if match is None:
        return Name(name, "", "")
    return Name(match["metric"], match["side"] or "", match["scope"] or "")


def rows(report: Report) -> list[Row]:
    """The measurements of `report` that compare baseline and candidate, in its order."""
    found: dict[tuple[str, str], dict[str, Measurement]] = {}
    for measurement in report.measurements:
        name = parse(measurement.name)
        if name.side:
            found.setdefault((name.metric, name.scope), {})[name.side] = measurement
    return [
        Row(metric, scope, sides["baseline"], sides["candidate"], sides.get("difference") or sides.get("ratio"))
        for (metric, scope), sides in found.items()
        if {"baseline", "candidate"} <= set(sides)
    ]


def limited(report: Report) -> list[Measurement]:
    """The measurements that a limit judges, broken ones first, then undecided ones."""
    order = {False: 0, None: 1, True: 2}
    return sorted((m for m in report.measurements if m.limit is not None), key=lambda m: order[m.passed])


def scopes(found: Iterable[Row]) -> list[str]:
    """The distinct scopes of rows, in order, the whole set (empty) first."""
    return list(dict.fromkeys(["", *(row.scope for row in found)]))


def show_value(measurement: Measurement) -> str:
    """The value with its unit: `87.2%`, `+3.1 pp`, `4.21 ms`, `0.62×`."""
    return "not measured" if measurement.value is None else show(measurement.value, measurement)


def show_interval(measurement: Measurement) -> str:
    """The 95% interval in the value's unit, or nothing."""
    if measurement.interval is None:
        return ""
    low, high = (show(end, measurement, bare=True) for end in measurement.interval)
    return f"{low} … {high}"


def show_limit(measurement: Measurement) -> str:
    """The limit in the value's unit: `≥ -5.0 pp`."""
    limit: Limit | None = measurement.limit
    if limit is None:
        return ""
    relation = {">=": "≥", "<=": "≤", "==": "="}[limit.relation]
    return f"{relation} {show(limit.value, measurement)}"


def show_result(passed: bool | None) -> str:
    """`pass`, `fail` or `undecided`."""
    return {True: "pass", False: "fail", None: "undecided"}[passed]


def show(value: float, measurement: Measurement, *, bare: bool = False) -> str:
    """A number in the style of its measurement, with a true minus sign; `bare` leaves the unit out where it would repeat."""
    return _shown(value, measurement, bare).replace("-", "−")


def _shown(value: float, measurement: Measurement, bare: bool) -> str:
    name = parse(measurement.name)
    if name.metric in FLAGS:
        return FLAGS[name.metric][int(value != 0)]
    if name.metric == "mcnemar_p" and value < 0.001:
        return "< 0.001"
    if name.side == "ratio":
        return f"{value:.2f}×"
    if name.metric in SCORES | SHARES and name.metric != "roc_auc":
        return _points(value, bare) if name.side == "difference" else f"{100 * value:.1f}%"
    if name.side == "difference":
        return f"{value:+.3f}"
    if name.metric in ("roc_auc", "nll", "brier", "ece"):
        return f"{value:.3f}"
    return _by_unit(value, measurement.unit, bare)


def _points(value: float, bare: bool) -> str:
    return f"{100 * value:+.1f}" if bare else f"{100 * value:+.1f} pp"


def _by_unit(value: float, unit: str, bare: bool) -> str:
    if unit in ("MACs", "parameters"):
        scale, letter = (1e3, "k") if value < 1e5 else (1e6, "M") if value < 1e9 else (1e9, "G")
        return f"{value / scale:,.{2 if letter == 'G' else 1}f} {letter}"
    if unit in ("samples", "differences", "channels", "images", "slices", "calls", "rounds"):
        return f"{value:,.0f}" if bare or unit in ("differences", "slices") else f"{value:,.0f} {unit}"
    if unit in ("1", "nats") and 5e-4 <= abs(value) < 10 and value != round(value):
        return f"{value:.3f}"
    if value == round(value) or 0 < abs(value) < 0.005:
        number = f"{value:,.0f}" if value == round(value) else f"{value:.1e}"
        return number if bare or unit in ("1", "nats", "") else f"{number} {unit}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 100 or unit == "1" else f"{value:.2f}"
    return number if bare or unit in ("1", "nats", "") else f"{number} {unit}"
