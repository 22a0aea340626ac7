"""Is each member inside an ensemble's graph the member? An average hides what one member loses and another makes up for.

The exporter notes on every node the module it came from, so each member has one value in the graph that is its answer. It is
compared, on the images of the joint check, with the member alone in float64 and its own float32 rounding.

Legend: N images, C channels, H height, W width, K labels, M members.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from toolkit.backends import module_path, open_session
from toolkit.backends.noise import in_batches, measure_noise
from toolkit.bundle import Limit, Measurement, Report, verdict_of
from toolkit.checks.parity import ParityLimits
from toolkit.models import Deployed
from toolkit.models.ensemble import Ensemble

PREFIX = "net.members"  # of a deployed ensemble's members
BATCH = 8


def with_members(report: Report, deployed: Deployed, onnx_path: Path, images_NCHW: np.ndarray, limits: ParityLimits) -> Report:
    """The parity `report` of an ensemble with a line for each member, and the verdict of all lines; another net's as it is.

    `images_NCHW` are float32 pixels. A member's error is in its own floors, under the joint check's limit. Where the graph
    holds no single value that is a member's answer, the member is undecided.
    """
    if not isinstance(deployed.net, Ensemble):
        return report
    every_NCHW = images_NCHW.astype(np.float32)
    answers = _answers(onnx_path, len(deployed.net.members), every_NCHW)
    found = [
        _judged(f"error_ratio.max[member=member {m}]", member, answer_NK, every_NCHW, limits)
        for m, (member, answer_NK) in enumerate(zip(_alone(deployed), answers, strict=True))
    ]
    measurements = (*report.measurements, *found)
    details = dict(report.details)
    wrong = [m for m, measurement in enumerate(found) if measurement.passed is False]
    if wrong and "fault" not in details:
        sentence = f"The average passes, member {wrong[0]} inside it does not: its error is {found[wrong[0]].value:.3g} floors"
        details["fault"] = {"sentence": sentence, "culprit": None, "places": []}
    return replace(report, measurements=measurements, verdict=verdict_of(measurements), details=details)


def _alone(deployed: Deployed) -> list[nn.Module]:
    """Each member from the ensemble's pixels to its own logits, in its own label order."""
    ensemble = deployed.net
    assert isinstance(ensemble, Ensemble)
    return [nn.Sequential(deployed.normalise, view, net) for view, net in zip(ensemble.views, ensemble.members, strict=True)]


def _judged(
    name: str, member: nn.Module, answer_NK: np.ndarray | None, images_NCHW: np.ndarray, limits: ParityLimits
) -> Measurement:
    limit = Limit("<=", limits.k_fail, "an average may hide one member's fault")
    noise = measure_noise(member, images_NCHW, num_runs=limits.num_runs)
    if answer_NK is None or answer_NK.shape != noise.double_NK.shape:
        return Measurement(name, None, "floors", n=len(images_NCHW), limit=limit)
    ratio = float(noise.ratio_N(answer_NK).max()) if np.isfinite(answer_NK).all() else float("inf")
    passed: bool | None = limit.holds(ratio)
    if noise.float32_share > limits.max_float32_share:
        passed = None
    return Measurement(name, ratio, "floors", n=len(images_NCHW), limit=limit, passed=passed)


def _answers(path: Path, num_members: int, images_NCHW: np.ndarray) -> list[np.ndarray | None]:
    """What each member answers inside the graph, run without optimisation so that the value exists as it stands."""
    model = onnx.load(path)
    names = [_leaving(model, f"{PREFIX}.{m}") for m in range(num_members)]
    present = {output.name for output in model.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name is not None]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    session = open_session(model.SerializeToString(), threads=1, optimisation="off")
    taken = session.get_inputs()[0].name
    values = {
        name: in_batches(lambda batch, name=name: session.run([name], {taken: batch})[0], images_NCHW, BATCH) for name in wanted
    }
    return [None if name is None else values[name] for name in names]


def _leaving(model: onnx.ModelProto, module: str) -> str | None:
    """The one value that leaves `module` in the graph; None where there is none, or several."""
    inside = [_within(module_path(node), module) for node in model.graph.node]
    made = {name for node, within in zip(model.graph.node, inside, strict=True) if within for name in node.output}
    used: Sequence[str] = [
        *(name for node, within in zip(model.graph.node, inside, strict=True) if not within for name in node.input),
        *(output.name for output in model.graph.output),
    ]
    leaving = made & set(used)
    return leaving.pop() if len(leaving) == 1 else None


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")
