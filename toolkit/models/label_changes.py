"""What becomes of the classes of a model when it learns a data set's: matched by name, and by nothing else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelChanges:
    """The labels of old and new together (`carried`, whose weights stay), of the new alone (`new`) and the old (`dropped`).

    `similar` pairs a dropped label with a new one that differs from it in case, spaces or punctuation alone: likely one class
    written in two ways, which only a person can say.
    """

    carried: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    similar: tuple[tuple[str, str], ...]

    def sentence(self) -> str:
        """The changes in words, the long lists cut."""
        parts = [f"{len(names)} {what} ({_some(names)})" for what, names in self._kinds() if names]
        return "; ".join(parts) or "no labels"

    def hint(self) -> str:
        """What to do about similar labels; empty where there are none."""
        if not self.similar:
            return ""
        pairs = ", ".join(f"'{old}' and '{new}'" for old, new in self.similar[:5])
        return (
            f"labels of the bundle and of the data differ in case, spaces or punctuation alone: {pairs}. They count as "
            "different classes, so nothing was carried over for them; if they are the same, write them alike in the data."
        )

    def _kinds(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("carried over", self.carried), ("new", self.new), ("dropped", self.dropped)


def label_changes(before: Sequence[str], after: Sequence[str]) -> LabelChanges:
    """Compare the labels of a model with those it is to learn, each list in its own order."""
    new = tuple(label for label in after if label not in before)
    dropped = tuple(label for label in before if label not in after)
    similar = tuple((old, label) for old in dropped for label in new if _plain(old) == _plain(label))
    return LabelChanges(tuple(label for label in after if label in before), new, dropped, similar)


def _plain(label: str) -> str:
    """A label without case, spaces and punctuation; one of punctuation alone stays as it is."""
    return re.sub(r"[\W_]+", "", label.casefold()) or label


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
