"""What keeps faith with the old model? Negative flips and accuracy of several ways to train its successor.

    python scripts/bench_flips.py [--data digits elpv] [--seeds 5] [--output docs/flips]

Each seed trains an old model on part of the data (digits: a sixteenth of the training images, of which
the successor has an eighth; ELPV: monocrystalline cells) and
then its successors on all of it: plain fine-tuning of the old one, a new and wider net plainly trained, distilled from the
old one, and distilled with focus on what the old one has right, the half-way interpolation of old and fine-tuned, and an
ensemble of three new nets. All are small convolutional nets, so that five seeds take minutes; all are judged on the same
test images, as the gate judges. Writes <output>.md and <output>.json.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import stats
from torch import nn

from toolkit.bundle import Bundle, Preprocessing, Store, environment
from toolkit.checks.evaluate import predict_bundle
from toolkit.checks.flips import Flips
from toolkit.data import AugmentSpec, ImageSet, load_pixels
from toolkit.data.digits import digits
from toolkit.data.elpv import elpv
from toolkit.models import register
from toolkit.stages.adopt import adopt
from toolkit.stages.ensemble import ensemble
from toolkit.stages.finetune import finetune
from toolkit.stages.interpolate import interpolate
from toolkit.training import Distillation, FitOptions, TrainerSpec, full

WAYS = {
    "tuned": "the old model, fine-tuned",
    "between": "half-way between old and fine-tuned",
    "plain": "a new net, plain",
    "distilled": "a new net, old one as teacher",
    "focal 0.5": "... with focus 5, weight 0.5",
    "focal 0.9": "... with focus 5, weight 0.9",
    "ensemble": "three new nets, averaged",
}


@dataclass(frozen=True)
class Task:
    """One data set with the nets that are trained on it; `old` narrows the old model's training data."""

    images: ImageSet
    old: ImageSet
    widths: tuple[int, int]
    size_px: int
    epochs: int
    lr: float


def thinned(images: ImageSet, step: int) -> ImageSet:
    """The set with every `step`-th training image."""
    train = [sample for sample in images.samples if sample.split == "train"][::step]
    return replace(images, samples=(*train, *(sample for sample in images.samples if sample.split != "train")))


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: Task(thinned(digits(), 8), thinned(digits(), 16), (8, 16), 32, 40, 1e-2),
    "elpv": lambda: Task(elpv(), elpv().where(("mono",)), (16, 32), 64, 15, 1e-2),
}


def net(num_classes: int = 2, width: int = 8) -> nn.Module:
    """Four strided convolutions with BatchNorm and a linear head."""
    layers: list[nn.Module] = []
    widths = (3, width, 2 * width, 4 * width, 4 * width)
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


register("bench/net", net, Preprocessing((32, 32)))


def successors(task: Task, seed: int, store: Store, runs: Path) -> dict[str, Bundle]:
    """The old model and each successor of one seed, by the name of its way."""
    size = {"size_px": [task.size_px, task.size_px], "resize": "squash"}
    augment = AugmentSpec(horizontal_flip=0.0, shift=0.05)
    options = FitOptions(batch_size=32, class_weights="balanced", augment=augment, seed=seed)

    def fresh(width: int, number: int) -> Bundle:
        labels, kwargs = task.images.labels, {"width": width}
        return adopt("bench/net", store=store, labels=labels, preprocessing=size, kwargs=kwargs, seed=1000 * number + seed)

    def train(bundle: Bundle, name: str, **rest: object) -> Bundle:
        settings = {"data": task.images, "options": options, "schedule": full(epochs=task.epochs, lr=task.lr)} | rest
        trainer = TrainerSpec(accelerator="auto")
        return finetune(bundle, store=store, trainer=trainer, run_dir=runs / f"{name}-{seed}", **settings)  # type: ignore[arg-type]

    def taught(distillation: Distillation, name: str) -> Bundle:
        return train(new, name, teacher=old, options=replace(options, distillation=distillation))

    old = train(fresh(task.widths[0], 0), "old", data=task.old)
    new = fresh(task.widths[1], 1)
    tuned = train(old, "tuned", schedule=full(epochs=task.epochs, lr=task.lr / 2))
    plain = train(new, "plain")
    others = [train(fresh(task.widths[1], number), f"member{number}") for number in (2, 3)]
    return {
        "old": old,
        "tuned": tuned,
        "between": interpolate(tuned, store=store, baseline=old, data=task.images),
        "plain": plain,
        "distilled": taught(Distillation(0.5, 2.0), "distilled"),
        "focal 0.5": taught(Distillation(0.5, 2.0, 5.0), "focal5"),
        "focal 0.9": taught(Distillation(0.9, 2.0, 5.0), "focal9"),
        "ensemble": ensemble([plain, *others], store=store),
    }


def measured(task: Task, bundles: dict[str, Bundle]) -> dict[str, dict[str, float]]:
    """Accuracy and negative-flip rate of every way on the test split."""
    pixels = load_pixels(task.images.split("test"), bundles["old"].manifest.preprocessing)
    answers = {name: predict_bundle(bundle, pixels) for name, bundle in bundles.items()}
    found = {"old": {"accuracy": float(answers["old"].correct_N.mean()), "negative_flips": 0.0}}
    for name in WAYS:
        flips = Flips(answers["old"], answers[name])
        found[name] = {"accuracy": float(answers[name].correct_N.mean()), "negative_flips": flips.negative_rate}
    return found


def interval(values: list[float]) -> str:
    """The mean in percent with its 95% t-interval over seeds."""
    mean, n = 100 * float(np.mean(values)), len(values)
    half = 100 * float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return f"{mean:.1f} ± {half:.1f}"


def table(name: str, runs: list[dict[str, dict[str, float]]]) -> str:
    """The Markdown table of one data set; changes are paired with the plainly trained new net by seed."""
    columns = ("successor", "accuracy, %", "negative flips, %", "flips against plain", "accuracy against plain, points")
    head = f"### {name}, {len(runs)} seeds\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    rows = [f"| the old model | {interval([run['old']['accuracy'] for run in runs])} | | | |"]
    for way, title in WAYS.items():
        flips = [run[way]["negative_flips"] for run in runs]
        plain = [run["plain"]["negative_flips"] for run in runs]
        change = [run[way]["accuracy"] - run["plain"]["accuracy"] for run in runs]
        share = f"{sum(flips) / max(sum(plain), 1e-9):.2f}×" if way != "plain" else ""
        against = interval(change) if way != "plain" else ""
        accuracy = interval([run[way]["accuracy"] for run in runs])
        rows.append(f"| {title} | {accuracy} | {interval(flips)} | {share} | {against} |")
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Run the tasks asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/flips"))
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.data:
            task = TASKS[name]()
            for seed in range(arguments.seeds):
                store = Store(Path(folder, name))
                bundles = successors(task, seed, store, Path(folder, "runs", name))
                results.setdefault(name, []).append(measured(task, bundles))
                print(name, seed, json.dumps(results[name][-1]), flush=True)
    where = environment()
    tables = "\n".join(table(name, runs) for name, runs in results.items())
    note = f"\nMeasured on {where.get('processor', '?')}, {where.get('num_cpus', '?')} CPUs; intervals are 95% over seeds.\n"
    arguments.output.with_suffix(".md").write_text(tables + note)
    arguments.output.with_suffix(".json").write_text(json.dumps({"results": results, "environment": where}, indent=1))
    print(tables + note)


if __name__ == "__main__":
    main()
