"""Truths that come later than their answers, joined by id.

Whoever inspects a part learns days later what it was. An answer without its truth waits under its id, and so does a truth
whose answer has not been read yet (another log, another order); when both are there, the pair counts as one labelled sample.
Both queues are bounded and forget the oldest, because most answers never get a truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.checks.monitor_records import Answer, LateTruth

MAX_WAITING = 20_000


@dataclass(frozen=True)
class Waiting:
    """Answers (id, class, former model's class) that lack a truth, and truths (id, class) that lack an answer, oldest first."""

    answers: tuple[tuple[str, int, int | None], ...] = ()
    truths: tuple[tuple[str, int], ...] = ()


def joined(
    waiting: Waiting, answers: Sequence[Answer], truths: Sequence[LateTruth]
) -> tuple[Waiting, list[Answer], list[Answer]]:
    """What waits now, the `answers` with the truths that were waiting for them, and earlier answers whose truth has come.

    An id counts once: a second truth for it waits in vain.
    """
    open_answers = {id: (predicted, baseline) for id, predicted, baseline in waiting.answers}
    open_truths = dict(waiting.truths)
    told = []
    for answer in answers:
        if answer.id and answer.truth is None:
            if answer.id in open_truths:
                answer = replace(answer, truth=open_truths.pop(answer.id))
            else:
                open_answers.pop(answer.id, None)
                open_answers[answer.id] = (answer.predicted, answer.baseline)
        told.append(answer)
    settled = []
    for late in truths:
        if late.id in open_answers:
            predicted, baseline = open_answers.pop(late.id)
            settled.append(Answer(predicted, truth=late.truth, baseline=baseline))
        else:
            open_truths.pop(late.id, None)
            open_truths[late.id] = late.truth
    left = Waiting(
        tuple((id, *entry) for id, entry in open_answers.items())[-MAX_WAITING:],
        tuple(open_truths.items())[-MAX_WAITING:],
    )
    return left, told, settled
