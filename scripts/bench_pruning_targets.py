"""How fast nets become at half of their multiply-accumulates, and how well latency targets are met, in onnxruntime.

Parent and child are called in turns on one image and one thread. Ratios of medians are taken within a round, each with
sessions of its own; the range is that over the rounds. Weights are random (with BatchNorm statistics of their own), so the
tables speak of speed, not of accuracy.

    python scripts/bench_pruning_targets.py [--rounds 5] [--only half,latency]

Writes docs/bench/targets.json, two tables of docs/pruning.md and a picture.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_pruning_families import settle
from benching.document import DOCS, into_page, line, machine
from benching.plots import aims
from torch import nn

from toolkit.backends.clock import measure_latency
from toolkit.backends.net_latency import NetClock
from toolkit.bundle import Architecture, Preprocessing, environment
from toolkit.checks.pruning_target import Case, net_clock, prune_to, with_grid
from toolkit.models import build
from toolkit.pruning import CRITERIA, Budget, PruneOptions, Target, count_macs, prune_net

CLASSES = 10
CALLS = 60
HALF = {"resnet18": 1.9, "resnet50": 2.0, "mobilenet_v3_small": 1.7, "mobilenet_v2": 1.8}
NEAR = 0.05


@dataclass(frozen=True)
class Aim:
    """A net, its image size and the share of its latency that is asked for."""

    net: str
    px: int
    share: float


AIMS = (
    Aim("resnet18", 224, 0.5),
    Aim("resnet50", 224, 0.6),
    Aim("mobilenet_v3_small", 224, 0.6),
    Aim("mobilenet_v2", 224, 0.5),
    Aim("efficientnet_b0", 224, 0.5),
    Aim("resnet18", 32, 0.5),
)


def case(name: str, px: int) -> Case:
    """The net with random weights and ordinary statistics; nothing about it is scored."""
    torch.manual_seed(0)
    net, spec = build(Architecture(f"torchvision/{name}", {"num_classes": CLASSES})), Preprocessing(size_px=(px, px))
    settle(net, px)
    batches = [(torch.randn(8, 3, px, px), torch.randint(0, CLASSES, (8,))) for _ in range(4)]
    labels = tuple(str(k) for k in range(CLASSES))
    return Case(net, batches[0][0][:1], spec, labels, batches, score=lambda net: 0.0, refresh=lambda net: 0)


def ratios(clock: NetClock, net: nn.Module, *, rounds: int) -> tuple[list[float], list[float]]:
    """Median milliseconds of the net and of its parent in each of the rounds."""
    found: tuple[list[float], list[float]] = ([], [])
    for seed in range(rounds):
        runners = {"net": clock.runner(net), "parent": clock.runner(clock.parent)}
        times = measure_latency(runners, clock.images_NCHW, rounds=CALLS, most_blocks=4, seed=seed)
        for name, values in zip(("net", "parent"), found, strict=True):
            values.append(float(np.median(times[name])))
    return found


def half(rounds: int) -> list[dict[str, Any]]:
    """Half of the multiply-accumulates by the default settings: how many times as fast."""
    rows = []
    for name, wanted in HALF.items():
        one, target = case(name, 224), Target(macs=0.5)
        clock, parent = net_clock(one, target), copy.deepcopy(one.net)
        options = with_grid(PruneOptions(round_to="auto"), one.net, one.example_NCHW, target=target)
        prune_net(
            one.net,
            one.example_NCHW,
            criterion=CRITERIA["taylor"](),
            budget=Budget("macs", 0.5),
            batches=one.batches,
            options=options,
        )
        net_ms, parent_ms = ratios(clock, one.net, rounds=rounds)
        times = [before / after for after, before in zip(net_ms, parent_ms, strict=True)]
        kept = count_macs(one.net, one.example_NCHW) / count_macs(parent, one.example_NCHW)
        rows.append(
            {
                "what": f"{name}, {kept:.1%} of the MACs kept, grid {options.grid}",
                "ours": statistics.median(net_ms),
                "other": statistics.median(parent_ms),
                "unit": "ms",
                "ratio": statistics.median(times),
                "range": [min(times), max(times)],
                "target": wanted,
                "met": statistics.median(times) >= wanted,
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def latency(rounds: int) -> list[dict[str, Any]]:
    """A share of the latency asked for: what was predicted, what the search measured, and what a fresh measurement says."""
    rows = []
    for aim in AIMS:
        one, target = case(aim.net, aim.px), Target(latency=aim.share)
        clock = net_clock(one, target)
        options = with_grid(PruneOptions(round_to="auto"), one.net, one.example_NCHW, target=target)
        started = time.perf_counter()
        reached = prune_to(one, criterion=CRITERIA["taylor"](), target=target, options=options)
        seconds = time.perf_counter() - started
        search, goal = reached.details["search"], {m.name: m.value for m in reached.measurements}
        net_ms, parent_ms = ratios(clock, one.net, rounds=rounds)
        shares = [after / before for after, before in zip(net_ms, parent_ms, strict=True)]
        wanted_ms = goal["latency_goal.wanted"] / aim.share
        rows.append(
            {
                "net": aim.net,
                "px": aim.px,
                "asked": aim.share,
                "predicted": goal["latency_goal.predicted"] / wanted_ms,
                "measured": goal["latency_goal.measured"] / wanted_ms,
                "again": statistics.median(shares),
                "range": [min(shares), max(shares)],
                "exports": len(search["tried"]),
                "layers_timed": search["layers_timed"],
                "seconds": seconds,
            }
        )
        print(_aim(rows[-1]), flush=True)
    return rows


def _aim(entry: dict[str, Any]) -> str:
    low, high = entry["range"]
    again = f"{entry['again']:.1%} ({low:.1%} … {high:.1%})"
    near = abs(entry["again"] / entry["asked"] - 1) <= NEAR
    return (
        f"| {entry['net']}, {entry['px']} px | {entry['asked']:.0%} | {entry['predicted']:.1%} | {entry['measured']:.1%} | "
        f"{again} | {'met' if near else '**missed**'} | {entry['exports']} | {entry['seconds']:.0f} s, "
        f"{entry['layers_timed']} layers timed |"
    )


COLUMNS = {
    "half": ("what", "pruned", "whole", "times as fast (range over rounds)", "wanted", ""),
    "latency": (
        *("net", "asked for", "predicted", "measured in the search"),
        *("measured again (range)", "within 5%", "exports", "search"),
    ),
}


def main() -> None:
    """Run the sections that are asked for, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="fresh sessions of each pair (default 5)")
    parser.add_argument("--only", default="half,latency", help="sections, of half,latency")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the directory of the pages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = arguments.docs / "bench" / "targets.json"
    found = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    for section in arguments.only.split(","):
        rows = {"half": half, "latency": latency}[section](arguments.rounds)
        found[section] = {"rows": rows, "environment": environment()}
        store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        into_page(arguments.docs / "pruning.md", section, _table(section, rows, found[section]["environment"]))
    if "latency" in found:
        aims(found["latency"]["rows"], store.with_suffix(".png"), near=NEAR)


def _table(section: str, rows: Sequence[dict[str, Any]], where: dict[str, Any]) -> str:
    each, columns = {"half": line, "latency": _aim}[section], COLUMNS[section]
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    facts = f"{machine(where)[:-1]}; onnxruntime {where['packages']['onnxruntime']}, batch 1, one thread."
    picture = "\n\n![latency asked for, predicted and measured](bench/targets.png)" if section == "latency" else ""
    return "\n".join([head, *map(each, rows), "", facts]) + picture


if __name__ == "__main__":
    main()
