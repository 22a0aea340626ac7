"""Watching a model in service: counts that grow, wagers on them, and alarms that stay.

Each test's e-value is a function of counts alone, so the state is small, and counts, marks of what was read and alarms are
saved together: a process killed at any moment has counted a batch whole or not at all.

A wager on all samples since the beginning drowns a change that comes late. So a new wager starts every 50 samples, and the
evidence is their weighted sum with weights 1/(j(j+1)), which sum to 1: a mixture over the time of the change, and an
e-process like each of its parts (the idea of e-detectors, Shin, Ramdas and Rinaldo, 2024). At most 100 wagers are kept;
dropping one only lowers the sum. An alarm stays until a person starts
a new state, because a stream that has drifted once is not cured by averaging.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from toolkit.bundle import Bundle, Limit, Measurement, Report, environment
from toolkit.bundle.atomic import write_atomic
from toolkit.bundle.manifest import from_plain
from toolkit.checks.drift_verdict import Threshold
from toolkit.checks.monitor_records import Answer
from toolkit.checks.monitor_reference import TESTS, Reference, distances
from toolkit.checks.monitor_truths import Waiting
from toolkit.checks.sequential import log_e_rate, log_e_shares
from toolkit.data.arrivals import Marks
from toolkit.errors import InputRefused

CHECK = "monitor"
SCHEMA = 1
MAX_POINTS = 400
SAMPLES_A_START = 50
MAX_STARTS = 100
LN10 = math.log(10)


@dataclass(frozen=True)
class Start:
    """One wager: the logarithm of its weight, and the counts since it started."""

    log_weight: float
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What has been seen of one bundle's service. `counts` by test; `points` the course of the evidence, for the chart.

    `alarms` maps a test to the number of samples and the time at which its wager won.
    """

    bundle: str
    profile: str
    alpha: float
    schema: int = SCHEMA
    marks: Marks = field(default_factory=Marks)
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    starts: tuple[Start, ...] = ()
    num_started: int = 0
    num_samples: int = 0
    num_batches: int = 0
    num_refused: int = 0
    alarms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    points: tuple[Mapping[str, Any], ...] = ()
    updated_utc: str = ""
    waiting: Waiting = field(default_factory=Waiting)

    def save(self, path: Path) -> None:
        """Write the state; it is the old one or the new one at every moment."""
        write_atomic(path, json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False).encode())


def load_state(path: Path, bundle: Bundle, profile: Report, *, alpha: float) -> State:
    """The state kept at `path`, or a new one. Raises `InputRefused` for a damaged one and for another bundle's or profile's."""
    fresh = State(bundle.digest, profile.details["tensors"]["sha256"], alpha)
    if not path.exists():
        return fresh
    try:
        state = from_plain(State, json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputRefused(
            f"{path} is not a monitor's state ({error}): restore it from a copy, or move it away to start anew."
        ) from error
    for name in ("bundle", "profile", "alpha", "schema"):
        if getattr(state, name) != getattr(fresh, name):
            raise InputRefused(
                f"{path} was kept for another {name} ({str(getattr(state, name))[:12]}, now {str(getattr(fresh, name))[:12]}): "
                "give another output=<dir>, or move it away to start anew."
            )
    return state


def counted(
    state: State,
    answers: Sequence[Answer],
    reference: Reference,
    *,
    marks: Marks,
    embeddings_NP: np.ndarray | None = None,
    settled: Sequence[Answer] = (),
) -> State:
    """The state after a batch: counts, evidence, alarms and marks together.

    `settled` are answers that were counted before and whose truth has come now.
    """
    new = _counts(answers, settled, reference, embeddings_NP)
    counts = _added(state.counts, new)
    num_samples = state.num_samples + len(answers)
    starts, num_started = state.starts, state.num_started
    if answers and num_started * SAMPLES_A_START <= state.num_samples:
        num_started += 1
        starts = (*starts, Start(-math.log(num_started * (num_started + 1))))
    starts = tuple(replace(start, counts=_added(start.counts, new)) for start in starts)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    evidence = log_evidence(starts, num_started, reference)
    alarms = dict(state.alarms)
    for name, value in evidence.items():
        if value >= reference.alarm_at and name not in alarms:
            alarms[name] = {"num_samples": num_samples, "time_utc": now, "log10_e": value / LN10}
    point = {"num_samples": num_samples, "time_utc": now, "batch": {k: list(v) for k, v in new.items()}}
    point["log10_e"] = {name: value / LN10 for name, value in evidence.items()}
    return replace(
        state,
        marks=marks,
        counts=counts,
        starts=_strongest(starts, reference),
        num_started=num_started,
        num_samples=num_samples,
        num_batches=state.num_batches + 1,
        alarms=alarms,
        points=_thinned((*state.points, point)) if new else state.points,
        updated_utc=now,
    )


def log_evidence(starts: Sequence[Start], num_started: int, reference: Reference) -> dict[str, float]:
    """The natural logarithm of each test's e-value over all wagers; tests without data or without a null are left out."""
    waiting = -math.log(num_started + 1)  # the weight of the wagers that have not started: each still stands at 1
    weights = np.array([start.log_weight for start in starts])
    evidence: dict[str, float] = {}
    for name, values_S in _each(starts, reference).items():
        total: Any = special.logsumexp(np.append(weights + values_S, waiting))
        evidence[name] = float(total)
    return evidence


def _each(starts: Sequence[Start], reference: Reference) -> dict[str, np.ndarray]:
    """The natural logarithm of every wager (S,), by test."""
    found = {}
    for name in TESTS:
        length = next((len(start.counts[name]) for start in starts if name in start.counts), 0)
        if not length:
            continue
        counts_SB = np.array([start.counts.get(name, (0,) * length) for start in starts])
        if name in reference.regions:
            found[name] = log_e_shares(counts_SB, reference.regions[name])
        elif name == "discordant" or (name == "errors" and reference.highest_error is not None):
            highest = 0.5 if name == "discordant" else reference.highest_error
            found[name] = log_e_rate(counts_SB[:, 0], counts_SB[:, 1], highest or 0.0)
    return found


def _strongest(starts: tuple[Start, ...], reference: Reference) -> tuple[Start, ...]:
    """The first wager, the newest, and of the others those that have won most."""
    if len(starts) <= MAX_STARTS:
        return starts
    best_S = np.max([*_each(starts, reference).values()], axis=0) + [start.log_weight for start in starts]
    best_S[[0, -1]] = np.inf
    kept = set(np.argsort(-best_S, kind="stable")[:MAX_STARTS].tolist())
    return tuple(start for index, start in enumerate(starts) if index in kept)


def monitor_report(state: State, reference: Reference, bundle: Bundle, *, min_samples: Threshold) -> Report:
    """The report `monitor`: the evidence of each test against its alarm line. Fails from the first alarm on."""
    limit = Limit("<=", reference.alarm_at / LN10, f"False alarms over all looks and tests: at most {reference.alpha:g}.")
    evidence = log_evidence(state.starts, state.num_started, reference)
    measurements = [
        Measurement(
            f"evidence.{name}",
            value / LN10,
            unit="log10",
            n=_seen(name, state.counts),
            limit=limit,
            passed=name not in state.alarms,
        )
        for name, value in evidence.items()
    ]
    measurements += [
        Measurement.against(
            "samples.seen", float(state.num_samples), Limit(">=", min_samples.value, min_samples.reason), unit="samples"
        ),
        Measurement("samples.with_truth", float(sum(state.counts.get("labels", ()))), unit="samples"),
        Measurement("samples.refused", float(state.num_refused), unit="samples"),
    ]
    few = state.num_samples < min_samples.value
    details = {
        "alarms": {name: dict(alarm) for name, alarm in state.alarms.items()},
        "counts": {name: list(found) for name, found in state.counts.items()},
        "reference": {name: list(found) for name, found in reference.shares.items()},
        "highest_error": reference.highest_error,
        "labels": list(bundle.manifest.labels),
        "points": [dict(point) for point in state.points],
        "num_batches": state.num_batches,
        "num_waiting": {"answers": len(state.waiting.answers), "truths": len(state.waiting.truths)},
        "updated_utc": state.updated_utc,
        "alarm_at": reference.alarm_at / LN10,
    }
    verdict = "fail" if state.alarms else "undecided" if few else "pass"
    return Report(CHECK, (bundle.digest,), verdict, tuple(measurements), details, environment())


def _counts(
    answers: Sequence[Answer], settled: Sequence[Answer], reference: Reference, embeddings_NP: np.ndarray | None
) -> dict[str, tuple[int, ...]]:
    num_classes = len(reference.shares["answers"])
    found: dict[str, Sequence[int]] = {}
    if answers:
        found["answers"] = np.bincount([a.predicted for a in answers], minlength=num_classes).tolist()
    sure = [a.confidence for a in answers if a.confidence is not None]
    if sure:
        found["confidence"] = reference.confidence.counts_of(np.array(sure))
    if embeddings_NP is not None and len(embeddings_NP):
        found["distance"] = reference.distance.counts_of(distances(embeddings_NP))
    known = [a for a in (*answers, *settled) if a.truth is not None]
    if known:
        found["labels"] = np.bincount([a.truth for a in known if a.truth is not None], minlength=num_classes).tolist()
        found["errors"] = (sum(a.predicted != a.truth for a in known), len(known))
    pairs = [a for a in known if a.baseline is not None]
    if pairs:
        worse = sum(a.baseline == a.truth != a.predicted for a in pairs)
        found["discordant"] = (worse, worse + sum(a.predicted == a.truth != a.baseline for a in pairs))
    return {name: tuple(int(value) for value in values) for name, values in found.items()}


def _added(before: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: _sum(before.get(name), new.get(name)) for name in {*before, *new}}


def _sum(before: Sequence[int] | None, new: Sequence[int] | None) -> tuple[int, ...]:
    if before is None or new is None:
        return tuple(before or new or ())
    return tuple(a + b for a, b in zip(before, new, strict=True))


def _seen(name: str, counts: Mapping[str, Sequence[int]]) -> int:
    return counts[name][1] if name in ("errors", "discordant") else sum(counts[name])


def _thinned(points: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    """At most `MAX_POINTS` points: of too many, every other one goes, the newest stays."""
    return points if len(points) <= MAX_POINTS else (*points[:-1:2], points[-1])
