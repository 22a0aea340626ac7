"""A line of a prediction log, checked: `{"id": ..., "label" or "probabilities": ..., "truth": ..., "baseline": ...}`.

`probabilities` are a list in the order of the bundle's labels or a mapping from label; `label` alone is enough. `truth` is
the true label where it is known, `baseline` the answer of the model that was in service before, where both are asked. A truth
that is known later is a line of its own, `{"id": ..., "truth": ...}`, with the id of its answer. A log
is input from outside, so a line that is not of this form is counted as refused and never stops the monitor.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 0.01
MAX_ID = 200


@dataclass(frozen=True)
class Answer:
    """One answer in service: classes as positions in the bundle's labels; None for what the line does not say."""

    predicted: int
    confidence: float | None = None
    truth: int | None = None
    baseline: int | None = None
    id: str = ""


@dataclass(frozen=True)
class LateTruth:
    """The true class of an answer that another line tells."""

    id: str
    truth: int


def read_record(line: bytes, labels: Sequence[str]) -> Answer | LateTruth:
    """What a line tells: an answer, or the truth of an earlier one. Raises `ValueError` for a line of another form."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    others = {key: _class(record[key], labels, key) for key in ("truth", "baseline") if record.get(key) is not None}
    name = _id(record.get("id"))
    if record.get("probabilities") is not None:
        shares_K = _shares(record["probabilities"], labels)
        return Answer(int(shares_K.argmax()), float(shares_K.max()), id=name, **others)
    if record.get("label") is not None:
        return Answer(_class(record["label"], labels, "label"), id=name, **others)
    if "truth" not in others:
        raise ValueError("neither label, probabilities nor truth")
    if not name:
        raise ValueError("a truth without an answer needs the id of its answer")
    return LateTruth(name, others["truth"])


def _id(given: Any) -> str:
    if given is not None and (not isinstance(given, (str, int)) or isinstance(given, bool) or len(str(given)) > MAX_ID):
        raise ValueError(f"id is {str(given)[:40]!r}; give a number or a text of at most {MAX_ID} characters")
    return "" if given is None else str(given)


def _class(name: Any, labels: Sequence[str], key: str) -> int:
    if name not in labels:
        raise ValueError(f"{key} is {str(name)[:40]!r}, which is no label of the bundle ({', '.join(labels[:8])})")
    return labels.index(name)


def _shares(given: Any, labels: Sequence[str]) -> np.ndarray:
    if isinstance(given, Mapping):
        unknown = [str(name)[:40] for name in given if name not in labels]
        if unknown:
            raise ValueError(f"probabilities name {unknown[0]!r}, which is no label of the bundle")
        given = [given.get(label, 0.0) for label in labels]
    if not isinstance(given, list) or len(given) != len(labels) or not all(_is_number(value) for value in given):
        raise ValueError(f"probabilities are not {len(labels)} numbers")
    shares_K = np.array(given, float)
    if not np.isfinite(shares_K).all() or shares_K.min() < -TOLERANCE or abs(shares_K.sum() - 1) > TOLERANCE:
        raise ValueError("probabilities are not between 0 and 1 with the sum 1 (logits? apply softmax first)")
    return shares_K


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
