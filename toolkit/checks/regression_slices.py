"""Is any slice worse than before? One answer for all slices, so that many slices do not cry wolf.

Twenty slices of 100 images with no change at all show some "significant" slice in a third of the runs. The p-values are
therefore corrected together (Holm 1979), and a slice with too few images is not tested but named.
"""

from collections.abc import Mapping
from typing import Any

from scipy import stats

from toolkit.bundle import Measurement
from toolkit.checks.flips import Flips

ALPHA = 0.05
MIN_SAMPLES = 200


def worse_slices(
    slices: Mapping[str, Flips], *, min_samples: int = MIN_SAMPLES
) -> tuple[list[Measurement], list[dict[str, Any]]]:
    """`worse_slices` counts slices on which the new model is shown to err more often; `untested_slices` those too small.

    Where there are slices but none is large enough, the first has no value, and a limit on it is undecided. A slice is worse
    when McNemar's exact one-sided test, corrected over the tested slices, gives p <= 0.05. The second result lists every
    slice with its counts and p-values.
    """
    tested = {name: flips for name, flips in slices.items() if len(flips) >= min_samples}
    raw = {name: worse_p(flips.num_negative, flips.num_positive) for name, flips in tested.items()}
    corrected = holm(raw)
    listed = [
        {
            "slice": name,
            "num_samples": len(flips),
            "negative": flips.num_negative,
            "positive": flips.num_positive,
            "p": raw.get(name),
            "p_holm": corrected.get(name),
            "result": "too few images" if name not in tested else "worse" if corrected[name] <= ALPHA else "not shown worse",
        }
        for name, flips in slices.items()
    ]
    unseen = bool(slices) and not tested  # a group that is too small to test is not a group that was not harmed
    num_worse = None if unseen else float(sum(entry["result"] == "worse" for entry in listed))
    return [
        Measurement("worse_slices", num_worse, unit="slices", n=len(tested)),
        Measurement("untested_slices", float(len(slices) - len(tested)), unit="slices", n=len(slices)),
    ], listed


def worse_p(num_negative: int, num_positive: int) -> float:
    """One-sided exact McNemar test that the new model errs more often, from the discordant counts."""
    discordant = num_negative + num_positive
    return float(stats.binomtest(num_negative, discordant, alternative="greater").pvalue) if discordant else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: p-values that may each be held against the level of the whole family."""
    corrected: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = running
    return corrected
