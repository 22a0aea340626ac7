"""Pruning to a target: MACs and parameters by arithmetic, latency and accuracy by measuring candidates.

N images, C channels, H, W pixels.
"""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from toolkit.backends.channel_grid import measured_grid
from toolkit.backends.net_latency import NetClock
from toolkit.backends.op_latency import OpTable
from toolkit.bundle import Limit, Measurement, Plan, Preprocessing
from toolkit.bundle.manifest import from_plain
from toolkit.errors import InputRefused, UsageError
from toolkit.pruning import CRITERIA, Budget, Criterion, PruneOptions, Target, apply_plan, prune_net
from toolkit.pruning.criteria import Batch
from toolkit.pruning.latency import LatencyModel
from toolkit.pruning.layers import layer_calls
from toolkit.pruning.search import CLOSE, Finalist, search_accuracy, search_latency
from toolkit.pruning.selection import SMALLEST_SHARE

MET = Limit("<=", 1 + CLOSE, "the latency asked for, with 5% for the clock")


@dataclass(frozen=True, eq=False)
class Case:
    """A net to be pruned and what it is measured with.

    `score` gives the validation accuracy (0..1) of a net as it is, `refresh` re-estimates the BatchNorm of a net in place.
    """

    net: nn.Module
    example_NCHW: Tensor
    preprocessing: Preprocessing
    labels: Sequence[str]
    batches: Sequence[Batch]
    score: Callable[[nn.Module], float]
    refresh: Callable[[nn.Module], Any]


@dataclass(frozen=True, eq=False)
class Reached:
    """The plan that was carried out, what was measured to find it, and the notes on how."""

    plan: Plan
    measurements: tuple[Measurement, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Everything, as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes, origin: str) -> "Reached":
        """What `to_json` wrote; `origin` names it in errors. Raises `InputRefused` when it is not that."""
        try:
            return from_plain(cls, json.loads(content))
        except (ValueError, TypeError) as error:
            raise InputRefused(f"{origin} is not what an interrupted pruning leaves: {error}. Prune anew.") from error


def with_grid(options: PruneOptions, net: nn.Module, example_NCHW: Tensor, *, target: Target) -> PruneOptions:
    """`options` with the grid of channels as a number: measured on this machine where it is `auto`."""
    if options.round_to != "auto":
        return options
    table = op_table(target)
    return replace(options, round_to=measured_grid(net, example_NCHW, op_ms=table, device=target.device)[0])


def op_table(target: Target) -> OpTable:
    """The table of layers for the batch, the threads and the device of `target`."""
    return OpTable(batch=target.batch, threads=target.threads, device=target.device)


def net_clock(case: Case, target: Target) -> NetClock:
    """A clock for what the net of `case` becomes, against the net as it is now, under the conditions of `target`."""
    parent = copy.deepcopy(case.net)
    return NetClock(parent, case.preprocessing, case.labels, target.batch, target.threads, target.device)


def prune_to(case: Case, *, criterion: Criterion, target: Target, options: PruneOptions) -> Reached:
    """Prune the net of `case` in place to `target`.

    Raises what `prune_net` raises, and `UsageError` for a goal out of reach.
    """
    goal, value = target.goal

    def prune(net: nn.Module, budget: Budget, **costs: Any) -> Plan:
        return prune_net(
            net, case.example_NCHW, criterion=criterion, budget=budget, batches=case.batches, options=options, **costs
        )

    if goal == "accuracy_drop":
        reached = _to_accuracy(case, value, prune)
    elif goal in ("latency", "latency_ms"):
        reached = _to_latency(case, target, options, prune)
    else:
        return Reached(prune(case.net, Budget(goal, value)), details={"round_to": options.grid})
    apply_plan(case.net, reached.plan)
    return replace(reached, details={"round_to": options.grid, **reached.details})


def _to_accuracy(case: Case, drop: float, prune: Callable[..., Plan]) -> Reached:
    def score(net: nn.Module) -> float:
        case.refresh(net)
        return case.score(net)

    plan, tried = search_accuracy(case.net, drop=drop, prune=prune, score=score, baseline=case.score(case.net))
    note = (
        "accuracy on the validation split after BatchNorm re-estimation and before recovery; the split chose the plan, so its "
        "own figure is a little kind"
    )
    return Reached(plan, details={"search": {"goal": "accuracy_drop", "allowed": drop, "tried": tried, "note": note}})


def _to_latency(case: Case, target: Target, options: PruneOptions, prune: Callable[..., Plan]) -> Reached:
    goal, value = target.goal
    clock = net_clock(case, target)
    share = value if goal == "latency" else value / clock.parent_ms
    if share >= 1:
        raise UsageError(
            f"target.latency_ms={value:g} needs no pruning: the model takes {clock.parent_ms:.3g} ms here "
            f"({target.conditions}). Ask for less, or for a share (target.latency=0.6)."
        )
    table = op_table(target)
    ops = [call.op for call in layer_calls(case.net, case.example_NCHW)]
    whole_ms = clock.parent_fastest_ms / table.slowdown(ops)
    narrower = [(net, share * whole_ms) for net, share in _narrower(case, options, clock)]
    settings = {"op_ms": table, "whole_ms": whole_ms, "grid": options.grid}
    model = LatencyModel.fit(case.net, case.example_NCHW, **settings, narrower=narrower)
    steered = model.steered_costs(case.net, case.example_NCHW)
    whole = model.costs(case.net, [], case.example_NCHW).total

    def measure(net: nn.Module) -> float:
        net_ms, parent_ms = clock.times_ms(net)
        return net_ms / parent_ms

    plan, tried = search_latency(
        case.net,
        share=share,
        prune=lambda net, budget: prune(net, budget, costs=steered),
        predict=lambda net: model.costs(net, [], case.example_NCHW).total / whole,
        measure=measure,
    )
    chosen = next(one for one in tried if one.plan == plan)
    return Reached(plan, _latency_measurements(chosen, share, clock.parent_ms), _latency_details(tried, target, table))


def _narrower(case: Case, options: PruneOptions, clock: NetClock) -> Iterator[tuple[nn.Module, float]]:
    """The net of `case` at half and at its smallest widths, each with its share of the whole net's latency."""
    once = PruneOptions(round_to=options.grid, protect=options.protect)
    for removed in (0.5, 1 - SMALLEST_SHARE):
        twin, budget = copy.deepcopy(case.net), Budget("ratio", removed)
        with contextlib.suppress(UsageError):  # nothing can go on this grid
            prune_net(twin, case.example_NCHW, criterion=CRITERIA["random"](), budget=budget, batches=[], options=once)
            net_ms, parent_ms = clock.times_ms(twin)
            yield twin, net_ms / parent_ms


def _latency_measurements(chosen: Finalist, share: float, parent_ms: float) -> tuple[Measurement, ...]:
    return (
        Measurement("latency_goal.wanted", share * parent_ms, unit="ms"),
        Measurement("latency_goal.predicted", chosen.predicted * parent_ms, unit="ms"),
        Measurement("latency_goal.measured", chosen.measured * parent_ms, unit="ms"),
        Measurement.against("latency_goal.measured_to_wanted", chosen.measured / share, MET),
    )


def _latency_details(tried: Sequence[Finalist], target: Target, table: OpTable) -> dict[str, Any]:
    goal, value = target.goal
    finalists = [{"aim": one.aim, "predicted": one.predicted, "measured": one.measured} for one in tried]
    return {
        "search": {
            "goal": goal,
            "wanted": value,
            "batch": target.batch,
            "threads": target.threads,
            "device": target.device,
            "layers_timed": table.num_timed,
            "tried": finalists,
            "note": "shares of the unpruned model's latency in onnxruntime, the two timed in turns",
        }
    }
