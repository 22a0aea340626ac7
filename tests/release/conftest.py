"""A store with a small family in it: a model in service, its successor, and the successor's reports."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.bundle import (
    ONNX,
    Architecture,
    Bundle,
    Contract,
    Limit,
    Manifest,
    Measurement,
    Plan,
    Preprocessing,
    Report,
    Store,
    TensorSpec,
    environment,
    lineage,
)
from toolkit.data import ImageSet, Sample

LABELS = ("sound", "cracked")


@dataclass(frozen=True)
class Family:
    """The store, the model in service, its successor and images that the reports speak of."""

    store: Store
    baseline: Bundle
    candidate: Bundle
    images: ImageSet

    def report(self, check: str) -> Report:
        return self.store.reports(self.candidate.digest)[check]

    def change(self, check: str, change: Callable[[Report], Report]) -> None:
        """Replace the candidate's stored report."""
        self.store.add_report(change(self.report(check)))


def with_limit(report: Report, name: str, *, value: float, passed: bool | None) -> Report:
    """The report with the measurement `name` set to `value` and judged `passed`, and the verdict that follows."""
    found = [replace(m, value=value, passed=passed) if m.name == name else m for m in report.measurements]
    verdict = "fail" if passed is False else "undecided" if passed is None else "pass"
    return replace(report, measurements=tuple(found), verdict=verdict)


@pytest.fixture
def family(store: Store, tmp_path: Path) -> Family:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"not a real graph")
    old = [_bundle(store, "adopt", "torchvision/resnet18", 32, seed=0)]
    old.append(_bundle(store, "finetune", "torchvision/resnet18", 32, parents=old[-1:], seed=1))
    new = [_bundle(store, "adopt", "timm/tf_efficientnet_lite0", 48, seed=2)]
    recipe = {"criterion": "taylor", "target": {"macs": 0.5}}
    new.append(_bundle(store, "prune", "timm/tf_efficientnet_lite0", 48, parents=new[-1:], seed=3, recipe=recipe))
    new.append(_bundle(store, "export", "timm/tf_efficientnet_lite0", 48, parents=new[-1:], seed=3, files={ONNX: graph}))
    pictures = np.random.default_rng(0).integers(0, 255, size=(3, 40, 60), dtype=np.uint8)
    samples = [Sample(f"cell{i}.png", i % 2, "test", picture, slice="mono") for i, picture in enumerate(pictures)]
    store.add_report(_gate(new[-1], old[-1]))
    store.add_report(
        Report("parity", (new[-1].digest,), "pass", (Measurement.against("error_ratio", 1.5, Limit("<=", 8.0, "noise")),))
    )
    store.aliases.promote("production", old[-1].digest)
    return Family(store, old[-1], new[-1], ImageSet("cells", LABELS, tuple(samples), licence="CC0"))


def _bundle(
    store: Store,
    stage: str,
    key: str,
    size_px: int,
    *,
    seed: int,
    parents: list[Bundle] | None = None,
    recipe: dict | None = None,
    files: dict[str, Path] | None = None,
) -> Bundle:
    contract = Contract(
        (TensorSpec("images", "float32", ("batch", 3, size_px, size_px), "NCHW", "pixels", (0.0, 255.0)),),
        (TensorSpec("logits", "float32", ("batch", 2), "NK", "logits"),),
    )
    manifest = Manifest(
        Architecture(key),
        LABELS,
        Preprocessing((size_px, size_px)),
        contract,
        lineage(stage, parents=[parent.digest for parent in parents or []], recipe=recipe),
        plan=Plan({"conv.weight": {"0": (0, 1)}}) if stage in ("prune", "export") else Plan(),
    )
    weights = {"weight": torch.randn(8, generator=torch.Generator().manual_seed(seed))}
    return store.add(manifest, weights=weights, files=files)


def _gate(candidate: Bundle, baseline: Bundle) -> Report:
    def compared(name: str, old: float, new: float, low: float, high: float, scope: str = "") -> list[Measurement]:
        return [
            Measurement(f"{name}.baseline{scope}", old, interval=(old - 0.02, old + 0.02), n=300),
            Measurement(f"{name}.candidate{scope}", new, interval=(new - 0.02, new + 0.02), n=300),
            Measurement(f"{name}.difference{scope}", new - old, interval=(low, high), n=300),
        ]

    measurements = [
        *compared("accuracy", 0.8, 0.9, 0.05, 0.15),
        *compared("balanced_accuracy", 0.7, 0.85, 0.1, 0.2),
        *compared("roc_auc", 0.8, 0.9, 0.06, 0.14),
        *compared("accuracy", 0.9, 0.84, -0.1, -0.02, "[slice=mono]"),
        Measurement("negative_flip_rate", 0.02, interval=(0.01, 0.04), n=300, limit=Limit("<=", 0.05, "budget"), passed=True),
        Measurement("positive_flip_rate", 0.12, interval=(0.09, 0.16), n=300),
        Measurement("mcnemar_p", 1e-6, n=300),
        Measurement("negative_flip_rate[slice=mono]", 0.02, interval=(0.01, 0.04), n=300),
        Measurement("positive_flip_rate[slice=mono]", 0.12, interval=(0.09, 0.16), n=300),
        Measurement("mcnemar_p[slice=mono]", 0.5, n=300),
        Measurement("parity.passed", 1.0, limit=Limit("==", 1.0, "served as trained"), passed=True),
        Measurement("latency_median.baseline", 9.0, unit="ms", interval=(8.8, 9.2), n=100),
        Measurement("latency_median.candidate", 4.0, unit="ms", interval=(3.9, 4.1), n=100),
        Measurement("latency_median.ratio", 4 / 9, interval=(0.42, 0.46), n=100, limit=Limit("<=", 1.5, "room"), passed=True),
    ]
    bins = [{"lower": 14 / 15, "upper": 1.0, "count": 300, "confidence": 0.97, "accuracy": 0.9}]
    curves = {"reliability": bins, "roc": [[0.0, 0.0], [0.1, 0.8], [1.0, 1.0]], "confusion": [[140, 10], [20, 130]]}
    said = [{"label": label, "confidence": 0.9} for label in LABELS]
    details = {
        "data": {"name": "cells", "licence": "CC0", "split": "test", "num_samples": 300, "fingerprint": "ab" * 32},
        "labels": list(LABELS),
        "limits": {"negative_flip_rate": {"rule": "flips", "judged_by": "value", "text": "0.02 against <= 0.05"}},
        "contract": [{"item": "preprocessing.size_px", "baseline": [32, 32], "candidate": [48, 48], "severity": "compatible"}],
        "flips": [
            {
                "key": "cell0.png",
                "slice": "mono",
                "kind": "negative",
                "target": "sound",
                "baseline": said[0],
                "candidate": said[1],
            },
            {
                "key": "gone.png",
                "slice": "mono",
                "kind": "positive",
                "target": "sound",
                "baseline": said[1],
                "candidate": said[0],
            },
        ],
        "statistics": {"interval": "two-sided 95%"},
        "curves": {"baseline": curves, "candidate": curves},
        "thresholds": {"label": "cracked", "table": [_at(percent / 100) for percent in range(1, 100)]},
    }
    return Report("gate", (candidate.digest, baseline.digest), "pass", tuple(measurements), details, environment())


def _at(threshold: float) -> dict[str, object]:
    figures = {"recall": 1 - threshold, "precision": None, "alert_rate": 0.5, "false_positive_rate": (1 - threshold) ** 2}
    return {"threshold": threshold, "baseline": figures, "candidate": figures}
