"""Stops a fit at the step whose loss or gradient is not finite, before its weights change.

A host that looked at every loss would wait for the accelerator at every step. So the device decides: the fused optimiser
skips its update while `found_inf` is set, the number of the first bad step is kept on the device, and the host reads it
now and then, and always before it keeps anything. On the CPU, where looking is free, it looks at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.errors import CheckFailed

STEPS_BETWEEN_LOOKS = 32


class Diverged(CheckFailed):
    """The loss or its gradient became NaN or infinite; the weights were not touched by that step or any after it."""

    def __init__(self, step: int, where: str, findings: str = "") -> None:
        super().__init__(
            f"Training diverged at step {step} ({where}): the loss or its gradient is NaN or infinite. {findings}That step "
            "changed nothing, and the checkpoints before it are good. Lower schedule.lr, set options.clip_norm, or look at the "
            "data of that step."
        )
        self.step = step


class FiniteGuard:
    """Watches the steps of one optimiser on `device`; `where` names the phase in the error.

    `explain` is asked, with the number of the bad step, for sentences about its cause.
    `waits`: let the device decide and look rarely (default: wherever looking would make the host wait).
    """

    def __init__(
        self,
        optimiser: torch.optim.Optimizer,
        *,
        device: torch.device,
        where: str,
        explain: Callable[[int], str] = lambda step: "",
        waits: bool | None = None,
    ) -> None:
        self.where, self.explain = where, explain
        self.waits = device.type != "cpu" if waits is None else waits
        self.found_inf = torch.zeros((), device=device)
        self.first_bad = torch.full((), -1.0, device=device)
        self.num_looked = 0
        if self.waits:
            optimiser.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]

    def admit(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Judge the step `step` (an optimiser step count, from 1) by its loss and gradient norm, before its update."""
        total = loss.detach() + norm
        if not self.waits:
            if not total.isfinite():
                raise self._diverged(step)
            return
        bad = torch.logical_not(total.isfinite())
        self.first_bad.copy_(torch.where(bad & (self.first_bad < 0), float(step), self.first_bad))
        self.found_inf.copy_(self.first_bad >= 0)
        self.num_looked += 1
        if self.num_looked % STEPS_BETWEEN_LOOKS == 0:
            self.look()

    def look(self) -> None:
        """Wait for the device and raise `Diverged` when a step was bad."""
        if self.waits and (first := int(self.first_bad)) >= 0:
            raise self._diverged(first)

    def _diverged(self, step: int) -> Diverged:
        return Diverged(step, self.where, self.explain(step))
