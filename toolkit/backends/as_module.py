"""A bundle as one torch module, whatever it is: what teaches a student, or is compared, need not know which.

Shapes: N batch, C channels, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn

from toolkit.backends.opening import open_runner
from toolkit.backends.runner import Runner
from toolkit.bundle import Bundle
from toolkit.models import Deployed, restore
from toolkit.models.restoring import GRAPH_ONLY


class RunnerModule(nn.Module):
    """A runner that torch can call: float pixels 0..255 (N, C, H, W) on any device to logits (N, K), without gradients.

    `digest` (hexadecimal) is what tells two of them apart, for there are no weights: it is the module's only tensor.
    """

    identity: Tensor

    def __init__(self, runner: Runner, *, digest: str) -> None:
        super().__init__()
        self.runner = runner
        self.register_buffer("identity", torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K), in float32 on the images' device."""
        logits_NK = self.runner(images_NCHW.detach().cpu().float().numpy())
        return torch.tensor(logits_NK, dtype=torch.float32, device=images_NCHW.device)


def as_module(bundle: Bundle) -> nn.Module:
    """`bundle` from pixels 0..255 (N, C, H, W), at its own size, to logits (N, K). Raises as `restore` and `open_runner` do."""
    if bundle.manifest.architecture.key == GRAPH_ONLY:
        return RunnerModule(open_runner(bundle), digest=bundle.digest)
    return Deployed(restore(bundle), bundle.manifest.preprocessing)
