"""What pruning bought and what it cost, and the proof that the pruned net comes back from what a bundle keeps of it.

Proof and report come before the bundle is published: a bundle that can be seen restores to the net that was measured.

N images, C channels, H height, W width.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.bundle import WEIGHTS, Bundle, Limit, Manifest, Measurement, Report, Store, environment, verdict_of
from toolkit.checks.latency import NOTICEABLE
from toolkit.checks.regression_cost import cost_measurements, served_graphs
from toolkit.errors import CheckFailed
from toolkit.models import build
from toolkit.models.restoring import load_strictly
from toolkit.pruning import Target, apply_plan

MIB = 2**20
LATENCY_CALLS = 100
FASTER = Limit("<=", 1.0, "a pruned model that is not faster has lost accuracy for nothing")


@torch.no_grad()
def require_restorable(manifest: Manifest, net: nn.Module, images_NCHW: Tensor) -> None:
    """Build the manifest's architecture, cut it by its plan and load the weights of `net`: the logits must be the same bits.

    `images_NCHW` are normalised; `net` is in eval mode afterwards. Raises `CheckFailed` where the logits differ, and what
    building, cutting and loading raise.
    """
    again = build(manifest.architecture)
    apply_plan(again, manifest.plan)
    load_strictly(again, net.state_dict(), origin="the pruned model")
    expected_NK, found_NK = net.eval()(images_NCHW), again.eval()(images_NCHW)
    if not torch.equal(expected_NK, found_NK):
        raise CheckFailed(
            f"The pruned {manifest.architecture.key} does not come back from its plan and weights: its logits differ by up to "
            f"{float((expected_NK - found_NK).abs().max()):.3g}. It keeps something outside its weights and buffers, or does "
            "not answer the same twice; no bundle was made. Prune another architecture, or mend its module."
        )


@contextmanager
def unpublished(manifest: Manifest, net: nn.Module) -> Iterator[Bundle]:
    """The bundle that `net` will be, in a store of its own that ends with the block: its digest and file sizes are final."""
    with tempfile.TemporaryDirectory(prefix="toolkit-prune-") as folder:
        yield Store(folder).add(manifest, weights=net.state_dict())


def pruning_report(
    parent: Bundle,
    child: Bundle,
    *,
    images_NCHW: np.ndarray,
    story: Mapping[str, Mapping[str, float]],
    details: Mapping[str, Any],
    target: Target = Target(),  # noqa: B008 (frozen)
    found: Sequence[Measurement] = (),
) -> Report:
    """Cost and measured latency of both, the parent as baseline and the pruned bundle as candidate, and the story's scores.

    `images_NCHW` are float32 images, pixels 0..255, as many as `target.batch`; `story` maps each moment (`baseline`,
    `after_surgery`, ...) to its validation scores by name; `found` was measured on the way to the goal. Latency is that of the
    target's batch, threads and device. A pruned model that is not faster there fails the report, and so does one that lost more
    accuracy than was asked for; where the interval holds 1 it is undecided.
    """
    bundles = {"baseline": parent, "candidate": child}
    with served_graphs(bundles) as graphs:
        images = dict.fromkeys(bundles, images_NCHW)
        served_by = {"threads": target.threads, "device": target.device}
        measured = cost_measurements(bundles, graphs, images, rounds=LATENCY_CALLS, **served_by)
    measured = [_faster(m) if m.name == "latency_median.ratio" else m for m in measured]
    measured += [*found, *_accuracy_kept(story, target.goal)]
    before, after = (bundle.file(WEIGHTS).stat().st_size / MIB for bundle in (parent, child))
    measured += [
        Measurement("weights_size.baseline", before, unit="MiB"),
        Measurement("weights_size.candidate", after, unit="MiB"),
        Measurement("weights_size.ratio", after / before),
    ]
    for moment, values in story.items():
        measured += [
            Measurement(f"{name}.{moment}[split=val]", value, unit="nats" if name == "loss" else "1")
            for name, value in values.items()
        ]
    details = {**details, "latency": {"batch": target.batch, **served_by, "conditions": target.conditions}}
    return Report("pruning", (child.digest, parent.digest), verdict_of(measured), tuple(measured), details, environment())


def _faster(ratio: Measurement) -> Measurement:
    """The ratio of latencies, held against 1 with its whole interval; a tie, or a gain nobody notices, is undecided."""
    low, high = ratio.interval or (ratio.value, ratio.value)
    if low is None or high is None:
        return ratio
    return replace(ratio, limit=FASTER, passed=True if high < 1 - NOTICEABLE else False if low >= 1 else None)


def _accuracy_kept(story: Mapping[str, Mapping[str, float]], goal: tuple[str, float]) -> list[Measurement]:
    """Where a loss of accuracy was the goal: what is lost after recovery, on the validation split."""
    if goal[0] != "accuracy_drop":
        return []
    limit = Limit("<=", goal[1], "the loss of accuracy that was allowed")
    drop = story["baseline"]["accuracy"] - story["candidate"]["accuracy"]
    return [Measurement.against("accuracy_goal.drop[split=val]", drop, limit)]


def widths(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """The output channels of every convolution and linear layer, before and after."""
    left = dict(after.named_parameters())
    return {
        name.removesuffix(".weight"): [len(weight), len(left[name])]
        for name, weight in before.named_parameters()
        if weight.ndim > 1
    }
