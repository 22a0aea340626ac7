"""Do two graphs compute the same? For graphs without a module, where no float64 reference exists.

The floor is what the old graph's own answers move by, in float32: on images moved by one unit in the last place, and between
onnxruntime's optimiser on and off. Two graphs that differ by no more than a few floors differ by rounding.

Legend: N images, C channels, H height, W width, K labels.
"""

from collections.abc import Callable

import numpy as np

from toolkit.backends.noise import EPSILON, in_batches, moved_by_one_ulp, rms
from toolkit.bundle import Limit, Measurement, Report, environment, verdict_of
from toolkit.errors import UsageError

BATCH = 8

Run = Callable[[np.ndarray], np.ndarray]


def graph_parity(
    before: Run, after: Run, images_NCHW: np.ndarray, *, unoptimised: Run, subjects: tuple[str, ...], k: float = 8.0
) -> Report:
    """Compare the answers of `after` with those of `before` on real images, float32 pixels 0..255; `unoptimised` is `before`
    with its runtime's optimiser off.

    The report `parity` about the bundles `subjects` (digests) fails when an image's error exceeds `k` floors, a decision
    changes by more than that, or an answer is no number. Raises `UsageError` without images.
    """
    if len(images_NCHW) == 0:
        raise UsageError("parity needs real images: the data set's split is empty.")
    moved_NCHW = moved_by_one_ulp(images_NCHW, np.random.default_rng(0))
    old_NK, new_NK = (in_batches(run, images_NCHW, BATCH) for run in (before, after))
    others = (in_batches(unoptimised, images_NCHW, BATCH), in_batches(before, moved_NCHW, BATCH))
    finite = bool(np.isfinite(old_NK).all() and np.isfinite(new_NK).all())
    judged = [Measurement.against("finite", float(finite), Limit("==", 1, "NaN or infinity is never parity"))]
    if finite and new_NK.shape == old_NK.shape:
        judged += _errors(old_NK, new_NK, others, k)
    same = Limit("==", 1, "a graph with other outputs is another model")
    judged.append(Measurement.against("shapes_equal", float(new_NK.shape == old_NK.shape), same))
    details = {"reference": "the graph before the migration", "num_real_images": len(images_NCHW), "warning": ""}
    return Report("parity", subjects, verdict_of(tuple(judged)), tuple(judged), details, environment())


def _errors(old_NK: np.ndarray, new_NK: np.ndarray, others: tuple[np.ndarray, ...], k: float) -> list[Measurement]:
    n = len(old_NK)
    own_N = np.max([rms(other_NK - old_NK) for other_NK in others], axis=0)
    floor_N = np.maximum(np.maximum(own_N, np.median(own_N)), EPSILON * rms(old_NK))
    ratio_N = rms(new_NK - old_NK) / np.maximum(floor_N, np.finfo(np.float64).tiny)
    rows, ours_N, theirs_N = np.arange(n), new_NK.argmax(1), old_NK.argmax(1)
    margin_N = old_NK[rows, theirs_N] - old_NK[rows, ours_N]
    changed_N = (ours_N != theirs_N) & (margin_N > k * np.sqrt(2) * floor_N)
    reason = "beyond this many floors a fault is likelier than rounding"
    decisions = Limit("==", 0, "a decision that differs by more than rounding is another model's")
    return [
        Measurement.against("error_ratio.max", float(ratio_N.max()), Limit("<=", k, reason), unit="floors", n=n),
        Measurement("max_error", float(np.abs(new_NK - old_NK).max()), unit="logits", n=n),
        Measurement("top1_agreement", float(np.mean(ours_N == theirs_N)), n=n),
        Measurement.against("decisions_changed", float(changed_N.sum()), decisions, unit="images", n=n),
    ]
