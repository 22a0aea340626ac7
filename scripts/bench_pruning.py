"""Pruning held against plain Torch-Pruning and against random choice, at equal MACs and at equal measured latency.

For each seed a parent is trained; then every method prunes it, BatchNorm is re-estimated on the same images, the same
recovery follows (same epochs, taught by the parent), and the scores are taken on the test split. Methods:

    torch-pruning    global magnitude, one shot, widths as they fall (pip install 'model-upgrade-toolkit[bench]')
    ours, MACs       criterion taylor on the grid this machine is fast on, the same MACs
    random, MACs     the same solver, channels at random
    ours, latency    criterion taylor, as fast as Torch-Pruning's net in onnxruntime (one image, one thread)
    random, latency  the same with random scores

    python scripts/bench_pruning.py [--cases digits,elpv-resnet18,elpv-lite0] [--seeds 3] [--output runs/bench_pruning]

Results are kept line by line in docs/bench/pruning.jsonl, parents and graphs in <output>: an interrupted benchmark goes on.
At the end of a seed all its nets are timed in turns, in short blocks of warm calls; a latency is the median over the blocks of
the ratio of fastest calls. Tables and plot go into docs/pruning.md.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benching.document import DOCS, into_page, machine
from benching.plots import Point, planes
from benching.pruned import METHODS, PROBLEMS, Seed, relative

from toolkit.bundle import environment

KEYS = ("case", "method", "budget", "seed", "settings")
NAMES = {
    "torch-pruning": "Torch-Pruning",
    "ours, MACs": "ours, at its MACs",
    "random, MACs": "random, at its MACs",
    "ours, latency": "ours, at its latency",
    "random, latency": "random, at its latency",
}


class Rows:
    """The results so far, one JSON line a (case, method, budget, seed); those of other settings are left alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.all = [json.loads(line) for line in lines]

    def find(self, **facts: Any) -> list[dict[str, Any]]:
        """The rows with these facts."""
        return [row for row in self.all if all(row[key] == value for key, value in facts.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Write `row` down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        self.all.append(row)
        print({key: value for key, value in row.items() if key != "environment"}, flush=True)


def run_seed(case: str, seed: int, rows: Rows, output: Path) -> None:
    """Everything of one seed that `rows` lacks."""
    problem, bench = PROBLEMS[case], None
    settings = problem.settings()
    wanted = [("unpruned", 1.0), *((method, b) for b in problem.budgets for method in (*METHODS, "timing"))]
    for method, budget in wanted:
        facts = dict(zip(KEYS, (case, method, budget, seed, settings), strict=True))
        if rows.find(**facts):
            continue
        bench = bench or Seed(problem, seed=seed, folder=output / case / str(seed))
        if method == "unpruned":
            found: dict[str, Any] = {"macs": 1.0, "after": bench.score(bench.parent)}
        elif method == "timing":
            found = {"ms": bench.block_ms(budget), "environment": environment()}
        else:
            found = bench.row(method, budget)
        rows.add(facts | {"model": problem.model} | found)


def markdown(rows: Rows) -> str:
    """A table a case and budget, and the machines."""
    parts = []
    for case, problem in PROBLEMS.items():
        for budget in problem.budgets:
            mine = {"case": case, "budget": budget, "settings": problem.settings()}
            timings = {row["seed"]: row["ms"] for row in rows.find(method="timing", **mine)}
            if timings:
                parts.append(_table(rows, case, budget, timings))
    places = sorted({machine(row["environment"]) for row in rows.find(method="timing")})
    return "\n\n".join([*parts, *places])


def _table(rows: Rows, case: str, budget: float, timings: dict[int, dict[str, list[float]]]) -> str:
    problem, settings = PROBLEMS[case], PROBLEMS[case].settings()
    seeds = sorted(timings)

    def scores(method: str, key: str, at: float = budget) -> list[float]:
        found = {row["seed"]: row for row in rows.find(case=case, method=method, budget=at, settings=settings)}
        return [found[seed][key][problem.metric] for seed in seeds]

    metric, rival = problem.metric.replace("_", " "), scores("torch-pruning", "after")
    data = case.split("-")[0]
    title = (
        f"**{'ELPV' if data == 'elpv' else data}, {problem.model}**, {settings['px']} px, {100 * budget:.0f}% of the MACs; "
        f"{settings['epochs']} epochs of training, {settings['recovery']} of recovery; seeds: {len(seeds)}"
    )
    lines = [
        title,
        "",
        f"| method | MACs | latency | {metric} before recovery | after recovery | after, minus Torch-Pruning's |",
        "|---|---|---|---|---|---|",
        f"| unpruned | 100% | 1.00 | | {_spread(scores('unpruned', 'after', 1.0))} | |",
    ]
    for method in METHODS:
        found = {row["seed"]: row for row in rows.find(case=case, method=method, budget=budget, settings=settings)}
        macs = statistics.mean(found[seed]["macs"] for seed in seeds)
        latency = statistics.mean(relative(timings[seed], method, "unpruned") for seed in seeds)
        after = scores(method, "after")
        gains = [100 * (mine - other) for mine, other in zip(after, rival, strict=True)]
        gain = "" if method == "torch-pruning" else f"{statistics.mean(gains):+.1f} ({', '.join(f'{g:+.1f}' for g in gains)})"
        lines.append(
            f"| {NAMES[method]} | {100 * macs:.1f}% | {latency:.2f} | {_spread(scores(method, 'before'))} | {_spread(after)} | "
            f"{gain} |"
        )
    return "\n".join(lines)


def measured_points(rows: Rows) -> dict[str, list[list[Point]]]:
    """By case: each method's score after recovery against its MACs, and against its latency."""
    found = {}
    for case, problem in PROBLEMS.items():
        mine = {"case": case, "budget": problem.budgets[0], "settings": problem.settings()}
        timings = {row["seed"]: row["ms"] for row in rows.find(method="timing", **mine)}
        points: list[list[Point]] = [[], []]
        for method in METHODS if timings else ():
            done = [row for row in rows.find(method=method, **mine) if row["seed"] in timings]
            scores = [100 * row["after"][problem.metric] for row in done]
            macs = [100 * row["macs"] for row in done]
            latency = [relative(timings[row["seed"]], method, "unpruned") for row in done]
            for plane, xs in zip(points, (macs, latency), strict=True):
                plane.append(Point(NAMES[method], list(zip(xs, scores, strict=True)), method.startswith("ours")))
        if timings:
            found[f"{case.partition('-')[0]}, {problem.model} ({problem.metric.replace('_', ' ')})"] = points
    return found


def _spread(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({100 * min(values):.1f} … {100 * max(values):.1f})"


def main() -> None:
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_pruning"))
    parser.add_argument("--docs", type=Path, default=DOCS, help="the directory of the pages")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rows = Rows(arguments.docs / "bench" / "pruning.jsonl")
    for seed in range(arguments.seeds):
        for case in arguments.cases.split(","):
            run_seed(case, seed, rows, arguments.output)
    text = markdown(rows)
    print(text)
    planes(
        measured_points(rows),
        arguments.docs / "bench" / "pruning.png",
        x=("MACs, %", "latency, share"),
        y="score after recovery, %",
    )
    picture = "![accuracy after recovery against multiply-accumulates and against measured latency](bench/pruning.png)"
    into_page(arguments.docs / "pruning.md", "pruning", f"{text}\n\n{picture}")


if __name__ == "__main__":
    main()
