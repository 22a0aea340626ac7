"""The deployed form of a model: pixels in, logits out, with the normalisation where nobody can forget it.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from torch import Tensor, nn

from toolkit.bundle import Contract, Preprocessing, TensorSpec
from toolkit.data.preprocessing import Normalise


class Deployed(nn.Module):
    """`net` behind its own preprocessing: float32 pixels 0..255 (N, C, H, W), already resized, to logits (N, K)."""

    def __init__(self, net: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalise = Normalise(preprocessing)
        self.net = net
        self.train(net.training)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of pixels 0..255 (N, C, H, W)."""
        return self.net(self.normalise(images_NCHW))


def pixel_contract(preprocessing: Preprocessing, num_labels: int) -> Contract:
    """The contract of a deployed model: input `images` (batch, C, H, W) in pixels, output `logits` (batch, `num_labels`)."""
    height_px, width_px = preprocessing.size_px
    images = TensorSpec(
        name="images",
        dtype="float32",
        dims=("batch", preprocessing.num_channels, height_px, width_px),
        layout="NCHW",
        meaning="pixels",
        value_range=(0.0, 255.0),
    )
    logits = TensorSpec(name="logits", dtype="float32", dims=("batch", num_labels), layout="NK", meaning="logits")
    return Contract(inputs=(images,), outputs=(logits,))


def uint8_contract(preprocessing: Preprocessing, num_labels: int) -> Contract:
    """The contract of a graph with its preprocessing inside: input `images` (batch, height, width, C), uint8, of any size."""
    images = TensorSpec(
        name="images",
        dtype="uint8",
        dims=("batch", "height", "width", preprocessing.num_channels),
        layout="NHWC",
        meaning="pixels",
        value_range=(0.0, 255.0),
    )
    return Contract(inputs=(images,), outputs=pixel_contract(preprocessing, num_labels).outputs)
