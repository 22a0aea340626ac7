"""The scores of one validation: what early stopping and the choice of the best weights look at.

Shapes: N samples, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import UsageError

METRICS = {"balanced_accuracy": 1, "accuracy": 1, "roc_auc": 1, "loss": -1}
"""The metrics that may be monitored, with the sign that makes larger better."""


def scores(logits_NK: Tensor, targets_N: Tensor) -> dict[str, float]:
    """Every metric that is defined for these logits; `roc_auc` needs two classes, both present.

    `balanced_accuracy` is the mean recall over the classes present, `loss` the plain cross entropy in nats.
    """
    logits_NK, targets_N = logits_NK.detach().float().cpu(), targets_N.cpu()
    num_classes = logits_NK.shape[1]
    right_N = (logits_NK.argmax(1) == targets_N).float()
    count_K = torch.bincount(targets_N, minlength=num_classes)
    recall_K = torch.bincount(targets_N, weights=right_N, minlength=num_classes) / count_K.clamp(min=1)
    found = {
        "loss": float(F.cross_entropy(logits_NK, targets_N)),
        "accuracy": float(right_N.mean()),
        "balanced_accuracy": float(recall_K[count_K > 0].mean()),
    }
    if num_classes == 2 and bool((count_K > 0).all()):
        found["roc_auc"] = roc_auc((logits_NK[:, 1] - logits_NK[:, 0]).double(), targets_N == 1)
    return found


def roc_auc(score_N: Tensor, positive_N: Tensor) -> float:
    """The share of (positive, negative) pairs that `score_N` orders rightly, ties counting half (Mann-Whitney U)."""
    _, rank_N, count_U = torch.unique(score_N, sorted=True, return_inverse=True, return_counts=True)
    below_U = count_U.cumsum(0) - count_U
    midrank_N = (below_U + (count_U + 1) / 2)[rank_N]
    num_positive = int(positive_N.sum())
    num_negative = len(score_N) - num_positive
    u = float(midrank_N[positive_N].sum()) - num_positive * (num_positive + 1) / 2
    return u / (num_positive * num_negative)


def require_defined(monitor: str, targets_N: Tensor, num_classes: int) -> None:
    """Raise `UsageError` when `monitor` cannot be computed on these validation targets."""
    if monitor == "roc_auc" and (num_classes != 2 or len(torch.unique(targets_N)) != 2):
        raise UsageError(
            f"monitor is roc_auc, which needs two classes, both in the validation split; the data has {num_classes} classes, "
            f"{len(torch.unique(targets_N))} of them there. Choose monitor=balanced_accuracy, accuracy or loss."
        )
