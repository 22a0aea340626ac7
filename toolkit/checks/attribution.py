"""Where a model looks: class activation maps of old and new on images whose answer changed, and how far the two agree.

The map is Grad-CAM (Selvaraju et al., ICCV 2017) in its faithful form, gradient times activation summed over channels
(HiResCAM, Draelos & Carin 2020; Captum computes it): plain Grad-CAM averages gradients over the image and so lights up
places that never reach the answer. The layer is the last convolution or batch norm whose map is at least 7 pixels wide: at
the small sizes that services run at, the very last map has four pixels and would show nothing. Two maps agree as far as they
correlate over a common grid; a model that is right for another reason than its predecessor shows up there before it shows up
in accuracy.

Legend: N samples, C channels, H height, W width, G side of the grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.bundle import WEIGHTS, Bundle, Measurement
from toolkit.checks.flips import Flips
from toolkit.checks.intervals import percentile_interval, resamples
from toolkit.data import Pixels
from toolkit.models import Deployed, ensemble, restore

GRID = 14
LEAST_SIDE = 7
MAX_EXPLAINED = {"negative": 12, "positive": 6, "agreement": 24}
KINDS = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True, eq=False)
class Explained:
    """The maps of some samples: maps_NGG, 0..1 each, and the layer they were taken from."""

    layer: str
    maps_NGG: np.ndarray


def attribute(bundle: Bundle, images_NCHW: Tensor, classes_N: Sequence[int]) -> Explained | str:
    """The maps of `bundle` for the answers `classes_N` on pixels 0..255, or why there are none, in words."""
    try:
        from captum.attr import LayerGradientXActivation
    except ImportError:
        return "captum is not installed: pip install 'model-upgrade-toolkit[explain]'"
    if not bundle.has(WEIGHTS):
        return "it is a graph: there is no module to take gradients of"
    if bundle.manifest.architecture.key == ensemble.KEY:
        return "it is an ensemble: its members look at the image each in their own way"
    net = Deployed(restore(bundle), bundle.manifest.preprocessing).eval()
    for module in net.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - an activation in place would change the map under our hands
    name = _layer(net, images_NCHW[:1].float())
    if name is None:
        return f"no convolution of it has a map of {LEAST_SIDE} pixels or more"
    method = LayerGradientXActivation(net, net.get_submodule(name))
    with torch.enable_grad():
        parts_NCHW = method.attribute(images_NCHW.float(), target=torch.tensor(list(classes_N)))
    assert isinstance(parts_NCHW, Tensor)
    maps_N1HW = parts_NCHW.detach().sum(1, keepdim=True).relu()
    maps_NGG = F.interpolate(maps_N1HW, (GRID, GRID), mode="bilinear", align_corners=False)[:, 0]
    top_N = maps_NGG.amax(dim=(1, 2), keepdim=True)
    return Explained(name.removeprefix("net."), torch.where(top_N > 0, maps_NGG / top_N.clamp(min=1e-12), 0.0).numpy())


def explain(
    bundles: Mapping[str, Bundle], pixels: Mapping[str, Pixels], flips: Flips, *, seed: int = 0
) -> tuple[list[Measurement], dict[str, Any]]:
    """Maps of both sides on the most confidently flipped samples and on some on which both agree; and how alike they are.

    The measurements are mean correlations, -1..1, with 95% bootstrap intervals over samples. `details` holds the maps as
    grids of 0..99 by sample key; where a side has no maps, it holds the reason and there are no measurements.
    """
    chosen = _chosen(flips, seed=seed)
    indices = [index for found in chosen.values() for index in found]
    if not indices:
        return [], {"reason": "there is no image to explain"}
    answers = {"baseline": flips.old.classes_N, "candidate": flips.new.classes_N}
    found = {
        side: attribute(bundle, pixels[side].images_NCHW[indices], answers[side][indices].tolist())
        for side, bundle in bundles.items()
    }
    reasons = [f"{side}: {outcome}" for side, outcome in found.items() if isinstance(outcome, str)]
    explained = {side: outcome for side, outcome in found.items() if isinstance(outcome, Explained)}
    if reasons or len(explained) < 2:
        return [], {"reason": "; ".join(reasons)}
    alike_N = _correlations(explained["baseline"].maps_NGG, explained["candidate"].maps_NGG)
    measurements, start = [], 0
    for kind, of_kind in chosen.items():
        part_N = alike_N[start : start + len(of_kind)]
        start += len(of_kind)
        measurements += _mean(f"attribution_agreement.{kind}", part_N[~np.isnan(part_N)], seed=seed)
    kinds = [kind for kind, of_kind in chosen.items() for _ in of_kind]
    maps = {
        pixels["baseline"].keys[index]: {
            "kind": kinds[at],
            "correlation": None if np.isnan(alike_N[at]) else round(float(alike_N[at]), 3),
            **{side: (99 * e.maps_NGG[at]).round().astype(int).tolist() for side, e in explained.items()},
        }
        for at, index in enumerate(indices)
    }
    return measurements, {"layers": {side: e.layer for side, e in explained.items()}, "maps": maps}


def _chosen(flips: Flips, *, seed: int) -> dict[str, list[int]]:
    """The samples to explain: flips, the most confidently wrong first, and agreements drawn at random."""
    both_N = flips.old.correct_N & flips.new.correct_N
    agreed = np.random.default_rng(seed).permutation(np.flatnonzero(both_N))
    return {
        "negative": _surest(flips.negative_N, flips.new.confidences_N)[: MAX_EXPLAINED["negative"]],
        "positive": _surest(flips.positive_N, flips.old.confidences_N)[: MAX_EXPLAINED["positive"]],
        "agreement": agreed[: MAX_EXPLAINED["agreement"]].tolist(),
    }


def _surest(which_N: np.ndarray, confidences_N: np.ndarray) -> list[int]:
    indices = np.flatnonzero(which_N)
    return indices[np.argsort(-confidences_N[indices], kind="stable")].tolist()


def _layer(net: nn.Module, image_1CHW: Tensor) -> str | None:
    """The last layer, past the first quarter, that writes a map wide enough; the first layers see edges, not objects."""
    calls: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: calls.append((name, tuple(output.shape)))

    watched = [(name, module) for name, module in net.named_modules() if isinstance(module, KINDS)]
    handles = [module.register_forward_hook(note(name)) for name, module in watched]
    try:
        with torch.no_grad():
            net(image_1CHW)
    finally:
        for handle in handles:
            handle.remove()
    wide = [name for name, shape in calls[len(calls) // 4 :] if len(shape) == 4 and min(shape[2:]) >= LEAST_SIDE]
    once = [name for name in wide if sum(call == name for call, _ in calls) == 1]
    return once[-1] if once and len(calls) > 1 else None


def _correlations(one_NGG: np.ndarray, other_NGG: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each pair of maps (N,); NaN where one of them is flat."""
    one, other = (maps.reshape(len(maps), -1) - maps.mean(axis=(1, 2))[:, None] for maps in (one_NGG, other_NGG))
    scale = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.divide((one * other).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 1e-12)


def _mean(name: str, values_N: np.ndarray, *, seed: int) -> list[Measurement]:
    if len(values_N) == 0:
        return []
    means_B = np.concatenate([weights_BN @ values_N / len(values_N) for weights_BN in resamples(len(values_N), seed=seed)])
    return [Measurement(name, float(values_N.mean()), interval=percentile_interval(means_B), n=len(values_N))]
