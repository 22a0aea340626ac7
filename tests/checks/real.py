"""Real architectures at small sizes, with the BatchNorm statistics of real photographs: what parity is tried on.

With random weights and no statistics of real images a deep network is so ill-conditioned that float32 itself is far from
float64, and nothing can be said about its graph.

N images, C channels, H height, W width.
"""

import functools
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import ConvNeXt, DenseNet, EfficientNet, MaxVit, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from toolkit.bundle import Architecture, Preprocessing
from toolkit.models import Deployed, build, register
from toolkit.pruning.batchnorm import reestimate_batchnorm

NUM_CALIBRATION = 64


def vit(num_classes: int) -> nn.Module:
    """torchvision's ViT for 64 px with four narrow layers."""
    net = VisionTransformer(64, patch_size=16, num_layers=4, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=num_classes)
    nn.init.normal_(net.heads[0].weight, std=0.02)  # torchvision starts it at zero: every logit would be equal
    return net


def convnext(num_classes: int) -> nn.Module:
    """torchvision's ConvNeXt with narrow stages and a layer scale that lets its blocks count."""
    stages = [CNBlockConfig(24, 48, 2), CNBlockConfig(48, 96, 2), CNBlockConfig(96, 192, 3), CNBlockConfig(192, None, 2)]
    return ConvNeXt(stages, layer_scale=0.5, num_classes=num_classes)


def swin(num_classes: int, *, version: int = 1) -> nn.Module:
    """torchvision's Swin transformer, either version, with two short narrow stages."""
    parts = {} if version == 1 else {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    shape = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": [7, 7]}
    return SwinTransformer(**shape, num_classes=num_classes, **parts)


def maxvit(num_classes: int) -> nn.Module:
    """torchvision's MaxViT for 64 px with two short narrow stages."""
    return MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=num_classes)


def efficientnet_v2(num_classes: int) -> nn.Module:
    """torchvision's EfficientNetV2 with five blocks, fused and plain."""
    fused = [FusedMBConvConfig(1, 3, 1, 24, 24, 1), FusedMBConvConfig(4, 3, 2, 24, 48, 2)]
    plain = [MBConvConfig(4, 3, 2, 48, 64, 1), MBConvConfig(6, 3, 1, 64, 96, 1)]
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3)
    return EfficientNet([*fused, *plain], 0.1, num_classes=num_classes, norm_layer=norm, last_channel=256)


for name, builder in {
    "vit": vit,
    "convnext": convnext,
    "swin": swin,
    "swin_v2": functools.partial(swin, version=2),
    "maxvit": maxvit,
    "efficientnet_v2": efficientnet_v2,
    "densenet": functools.partial(DenseNet, 16, (2, 2, 2, 2), 32),
    "resnext": functools.partial(ResNet, Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4),
}.items():
    register(f"tests/{name}", builder)


@functools.cache
def photos_NCHW(size_px: int, num_images: int = NUM_CALIBRATION) -> np.ndarray:  # noqa: N802
    """Square crops at random places of the two colour photographs that scikit-learn ships, float32 pixels 0..255."""
    random = np.random.default_rng(0)
    folder = resources.files("sklearn.datasets") / "images"
    photos = [Image.open(str(folder / name)).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    crops = []
    for index in range(num_images):
        photo = photos[index % len(photos)]
        side = int(random.integers(160, min(photo.size)))
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        crops.append(photo.crop((left, top, left + side, top + side)).resize((size_px, size_px), Image.Resampling.BICUBIC))
    return np.stack([np.asarray(crop, np.float32).transpose(2, 0, 1) for crop in crops])


def calibrated(key: str, size_px: int, *, num_classes: int = 1000, num_images: int = NUM_CALIBRATION) -> Deployed:
    """The model `key` behind its preprocessing, with random weights (seed 0) and BatchNorm statistics of `photos_NCHW`."""
    torch.manual_seed(0)
    kwargs: dict[str, int] = {"num_classes": num_classes}
    if key.startswith("torchvision/vit_"):
        kwargs["image_size"] = size_px
    deployed = Deployed(build(Architecture(key, kwargs)), Preprocessing((size_px, size_px)))
    batches = torch.from_numpy(photos_NCHW(size_px)[:num_images]).split(32)
    reestimate_batchnorm(deployed.net, (deployed.normalise(batch) for batch in batches))
    return deployed.eval()
