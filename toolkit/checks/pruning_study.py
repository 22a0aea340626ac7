"""What pruning would cost elsewhere: the sensitivity of each group, and accuracy and latency at other shares of the MACs.

For people to look at: none of it changes what is pruned.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.checks.pruning_target import Case, net_clock
from toolkit.errors import UsageError
from toolkit.pruning import Budget, Criterion, PruneOptions, Target, count_macs, prune_net
from toolkit.pruning.sensitivity import measure_sensitivity

SENSITIVITY = "sensitivity.jsonl"

logger = logging.getLogger(__name__)


def study(
    case: Case, *, criterion: Criterion, target: Target, options: PruneOptions, folder: Path, origin: Mapping[str, str]
) -> dict[str, Any]:
    """What `options.sensitivity` and `options.curve` ask for, about the unpruned net of `case`, which stays as it is.

    Sensitivities are kept in `folder` and read again when `origin` (the bundle's and the data's digests) and the settings
    are the same.
    """
    found: dict[str, Any] = {}
    if options.sensitivity:
        facts = [dict(origin), repr(criterion), options.seed, options.num_batches, options.batch_size, list(options.protect)]
        measured = measure_sensitivity(
            case.net,
            case.example_NCHW,
            criterion=criterion,
            batches=case.batches,
            path=folder / SENSITIVITY,
            key=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
            protect=options.protect,
        )
        found["sensitivity"] = [asdict(one) for one in measured]
    if options.curve:
        found["curve"] = _curve(case, criterion, target, options)
    return found


def _curve(case: Case, criterion: Criterion, target: Target, options: PruneOptions) -> list[dict[str, float]]:
    """Accuracy after BatchNorm re-estimation, before recovery, and measured latency, at each share of the MACs."""
    clock = net_clock(case, target)
    whole = count_macs(case.net, case.example_NCHW)
    points = [{"macs": 1.0, "accuracy": case.score(case.net), "latency_ms": clock.parent_ms, "latency": 1.0}]
    for share in sorted(options.curve, reverse=True):
        twin = copy.deepcopy(case.net)
        budget = Budget("macs", share)
        try:
            prune_net(twin, case.example_NCHW, criterion=criterion, budget=budget, batches=case.batches, options=options)
        except UsageError as error:
            logger.warning("The curve has no point at %.0f%% of the MACs: %s", 100 * share, error)
            continue
        case.refresh(twin)
        net_ms, parent_ms = clock.times_ms(twin)
        points.append(
            {
                "macs": count_macs(twin, case.example_NCHW) / whole,
                "accuracy": case.score(twin),
                "latency_ms": net_ms,
                "latency": net_ms / parent_ms,
            }
        )
        logger.info("curve: %(macs).3f of the MACs, accuracy %(accuracy).3f, %(latency).3f of the latency", points[-1])
    return points
