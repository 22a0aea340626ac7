"""The architectures that the tests prune: every family, the large ones narrowed."""

import functools
import importlib
from collections.abc import Callable

import torch
import torchvision
from torch import nn


def tv(name: str, **kwargs: object) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(num_classes=7, **kwargs)


def lite0() -> nn.Module:
    return importlib.import_module("timm").create_model("tf_efficientnet_lite0", num_classes=7)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=7)


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=7)


def swin_v2() -> nn.Module:
    block, merging = (
        torchvision.models.swin_transformer.SwinTransformerBlockV2,
        torchvision.models.swin_transformer.PatchMergingV2,
    )
    return torchvision.models.SwinTransformer(
        [4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=7, block=block, downsample_layer=merging
    )


def maxvit() -> nn.Module:
    return torchvision.models.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=7)


def convnext() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(16, 32, 1), setting(32, None, 1)], num_classes=7)


def wide_resnet() -> nn.Module:
    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=7, width_per_group=128)


def efficientnet_v2() -> nn.Module:
    plain, fused = torchvision.models.efficientnet.MBConvConfig, torchvision.models.efficientnet.FusedMBConvConfig
    blocks = [fused(1, 3, 1, 24, 24, 1), fused(4, 3, 2, 24, 48, 2), plain(4, 3, 2, 48, 64, 2), plain(6, 3, 1, 64, 96, 2)]
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3)
    return torchvision.models.EfficientNet(blocks, 0.1, num_classes=7, norm_layer=norm, last_channel=256)


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(32, (3, 3, 2, 2), 64, num_classes=7)


def narrowed(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The net with hidden linear layers of 256 instead of 4096 units: a hundred million weights say nothing more."""

    def make_narrow() -> nn.Module:
        with torch.device("meta"):
            net = make()
        linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        for index, name in enumerate(linear):
            layer = net.get_submodule(name)
            inputs = layer.in_features if index == 0 else 256
            outputs = layer.out_features if index == len(linear) - 1 else 256
            net.set_submodule(name, nn.Linear(inputs, outputs, device="meta"))
        net.to_empty(device="cpu")
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.05)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        return net

    return make_narrow


NETS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "resnet18": (tv("resnet18"), 0.5),
    "mobilenet_v3_small": (tv("mobilenet_v3_small"), 0.5),
    "efficientnet_b0": (tv("efficientnet_b0"), 0.5),
    "regnet_y_400mf": (tv("regnet_y_400mf"), 0.5),
    "shufflenet_v2_x1_0": (tv("shufflenet_v2_x1_0"), 0.6),
    "squeezenet1_1": (tv("squeezenet1_1"), 0.5),
    "tf_efficientnet_lite0": (lite0, 0.5),
    "vit": (vit, 0.85),
    "swin": (swin, 0.8),
    "swin_v2": (swin_v2, 0.8),
    "maxvit": (maxvit, 0.8),
    "convnext": (convnext, 0.6),
}
SLOW_NETS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "alexnet": (narrowed(tv("alexnet")), 0.5),
    "vgg11": (narrowed(tv("vgg11")), 0.5),
    "wide_resnet": (wide_resnet, 0.5),
    "inception_v3": (tv("inception_v3", init_weights=False, aux_logits=False), 0.5),
    "mobilenet_v2": (tv("mobilenet_v2"), 0.5),
    "mnasnet0_5": (tv("mnasnet0_5"), 0.5),
    "efficientnet_v2": (efficientnet_v2, 0.5),
    "densenet": (densenet, 0.5),
    "resnext50_32x4d": (tv("resnext50_32x4d"), 0.5),
    "vgg11_bn": (narrowed(tv("vgg11_bn")), 0.5),
    "googlenet": (tv("googlenet", init_weights=False), 0.5),
}
