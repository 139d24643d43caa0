"""The zoo's architectures in PyTorch, as references for tests and benchmarks.

Module names, widths, strides and features are those of HobbitLong/RepDistiller and, for ResNets
whose shortcuts have no parameters, akamaster/pytorch_resnet_cifar10, so state dicts are
interchangeable. Images are channels first and normalized. Every network ends in global average
pooling, so images of any size work that survive the strides.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad, relu


def build(name: str, num_classes: int, **options) -> nn.Module:
    """Builds a network by its name in the zoo.

    Options: `shortcut`, "projection" or "identity" (ResNets for CIFAR); `stem`, "32" or "64"
    (ResNet-18, -34 and -50); `width` (MobileNetV2).
    """
    return _NETWORKS[name](num_classes=num_classes, **options)


def features(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Returns the features that `models.features` has, by name."""
    found, last = module.maps(x)
    embedding = last.mean((2, 3))
    logits = module.get_submodule(module.head)(embedding)
    return {**found, "embedding": embedding, "logits": logits}


class Network(nn.Module):
    """Global average pooling and one linear layer at the end."""

    head = "linear"

    def maps(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the feature maps by name, and the maps before the pooling."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return features(self, x)["logits"]


class LayeredNetwork(Network):
    """ResNets and ShuffleNets: a stem, stages and, for some, one more convolution.

    Its blocks return their output and, if they may end a stage, the preactivation.
    """

    def __init__(self, num_classes, stem, stages, width, head="linear", last: int | None = None):
        super().__init__()
        self.head, self.depth = head, len(stages)
        _add_unit(self, 1, *stem)
        for number, blocks in enumerate(stages, 1):
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        if last:
            _add_unit(self, 2, width, last, 1)
        self.add_module(head, nn.Linear(last or width, num_classes))

    def maps(self, x):
        x = relu(_unit(self, 1, x))
        found = {"stem": x}
        for stage in range(1, self.depth + 1):
            for block in self.get_submodule(f"layer{stage}"):
                x, preactivation = block(x)
            found |= {f"stage{stage}": x, f"stage{stage}_preactivation": preactivation}
        return found, relu(_unit(self, 2, x)) if hasattr(self, "conv2") else x


class ResidualBlock(nn.Module):
    """Two convolutions, or the three of a bottleneck, and the shortcut.

    `projection` names the modules of a projection shortcut; None for an identity shortcut.
    """

    def __init__(self, inputs, outputs, stride, projection: str | None, bottleneck: bool):
        super().__init__()
        middle = outputs // 4
        sizes = [(outputs, 3, stride), (outputs, 3, 1)]
        if bottleneck:
            sizes = [(middle, 1, 1), (middle, 3, stride), (outputs, 1, 1)]
        self.depth, self.stride, self.padding = len(sizes), stride, (outputs - inputs) // 2
        self.projection = projection if stride > 1 or inputs != outputs else None
        if self.projection:
            self.add_module(self.projection, _normalized(inputs, outputs, 1, stride))
        for number, size in enumerate(sizes, 1):
            _add_unit(self, number, inputs, *size)
            inputs = size[0]

    def forward(self, x):
        if self.projection:
            kept = self.get_submodule(self.projection)(x)
        else:
            kept = x[:, :, :: self.stride, :: self.stride]
            kept = pad(kept, (0, 0, 0, 0, self.padding, self.padding))
        for number in range(1, self.depth):
            x = relu(_unit(self, number, x))
        x = _unit(self, self.depth, x) + kept
        return relu(x), x


class WideResNet(Network):
    """Wide ResNets; a stage's preactivation is the next stage's first batch norm."""

    head = "fc"

    def __init__(self, num_classes: int, *, depth: int, factor: int):
        super().__init__()
        widths = (16 * factor, 32 * factor, 64 * factor)
        stages = _stages(WideBlock, 16, widths, [(depth - 4) // 6] * 3, (1, 2, 2))
        self.conv1 = _conv(3, 16, 3)
        for number, blocks in enumerate(stages, 1):
            self.add_module(f"block{number}", nn.ModuleDict({"layer": nn.Sequential(*blocks)}))
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)

    def maps(self, x):
        x = self.conv1(x)
        found = {"stem": x}
        for stage in (1, 2, 3):
            for index, block in enumerate(self.get_submodule(f"block{stage}.layer")):
                x, normalized = block(x)
                if stage > 1 and index == 0:
                    found[f"stage{stage - 1}_preactivation"] = normalized
            found[f"stage{stage}"] = x
        found["stage3_preactivation"] = self.bn1(x)
        return found, relu(found["stage3_preactivation"])


class WideBlock(nn.Module):
    """A pre-activation block; returns its output and its normalized input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.convShortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        normalized = self.bn1(x)
        active = relu(normalized)
        kept = x if self.convShortcut is None else self.convShortcut(active)
        return kept + self.conv2(relu(self.bn2(self.conv1(active)))), normalized


class VGG(Network):
    """VGGs with batch norm and biases; the first of the five blocks is the stem."""

    head = "classifier"

    def __init__(self, num_classes: int, *, depths: tuple[int, ...]):
        super().__init__()
        inputs = 3
        for number, (width, depth) in enumerate(zip((64, 128, 256, 512, 512), depths, strict=True)):
            block = nn.Sequential()
            for index in range(depth):
                if index:
                    block.append(nn.ReLU())
                block.extend([nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)])
                inputs = width
            self.add_module(f"block{number}", block)
        self.classifier = nn.Linear(inputs, num_classes)

    def maps(self, x):
        pooled = (1, 2, 3, 4) if x.shape[2] == 64 else (1, 2, 3)
        found = {}
        for number in range(5):
            if number in pooled:
                x = max_pool2d(x, 2)
            preactivation = self.get_submodule(f"block{number}")(x)
            x = relu(preactivation)
            found[f"stage{number}" if number else "stem"] = x
            if number:
                found[f"stage{number}_preactivation"] = preactivation
        return found, x


class MobileNetV2(Network):
    """MobileNetV2 with ReLU, not ReLU6, and RepDistiller's strides: 16 in all before conv2.

    The stages end without a ReLU, so a stage and its preactivation are the same.
    """

    head = "classifier"
    # Expansion, channels at width 1, blocks and the first one's stride, group by group.
    groups = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2))
    groups += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    ends = (1, 2, 4, 6)

    def __init__(self, num_classes: int, *, width: float = 0.5):
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = _normalized(3, inputs, 3, 2).append(nn.ReLU())
        self.blocks = nn.ModuleList()
        for expansion, channels, depth, first_stride in self.groups:
            outputs = int(channels * width)
            group = nn.Sequential()
            for stride in [first_stride] + [1] * (depth - 1):
                group.append(InvertedResidual(inputs, outputs, stride, expansion))
                inputs = outputs
            self.blocks.append(group)
        outputs = int(1280 * max(width, 1))
        self.conv2 = _normalized(inputs, outputs, 1, 1).append(nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(outputs, num_classes))

    def maps(self, x):
        x = self.conv1(x)
        found = {"stem": x}
        for number, group in enumerate(self.blocks):
            x = group(x)
            if number in self.ends:
                stage = f"stage{self.ends.index(number) + 1}"
                found |= {stage: x, f"{stage}_preactivation": x}
        return found, self.conv2(x)


class InvertedResidual(nn.Module):
    """Expands, filters each channel and projects; adds the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.added = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_normalized(inputs, wide, 1, 1),
            nn.ReLU(),
            *_normalized(wide, wide, 3, stride, wide),
            nn.ReLU(),
            *_normalized(wide, outputs, 1, 1),
        )

    def forward(self, x):
        return x + self.conv(x) if self.added else self.conv(x)


class GroupedBlock(nn.Module):
    """ShuffleNetV1's block; a downsampling block appends the average-pooled input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.downsampling = stride == 2
        if self.downsampling:
            outputs -= inputs
        middle = outputs // 4
        self.groups = 1 if inputs == 24 else 3
        _add_unit(self, 1, inputs, middle, 1, 1, self.groups)
        _add_unit(self, 2, middle, middle, 3, stride, middle)
        _add_unit(self, 3, middle, outputs, 1, 1, 3)

    def forward(self, x):
        out = _shuffle(relu(_unit(self, 1, x)), self.groups)
        out = _unit(self, 3, relu(_unit(self, 2, out)))
        if self.downsampling:
            out = torch.cat([out, avg_pool2d(x, 3, stride=2, padding=1)], 1)
        else:
            out = out + x
        return relu(out), out


class HalvingBlock(nn.Module):
    """ShuffleNetV2's block; as in RepDistiller, its preactivation isn't shuffled."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        _add_unit(self, 1, half, half, 1)
        _add_unit(self, 2, half, half, 3, 1, half)
        _add_unit(self, 3, half, half, 1)

    def forward(self, x):
        untouched, x = x.chunk(2, 1)
        x = _unit(self, 3, _unit(self, 2, relu(_unit(self, 1, x))))
        return _shuffle(torch.cat([untouched, relu(x)], 1), 2), torch.cat([untouched, x], 1)


class DownBlock(nn.Module):
    """ShuffleNetV2's first block of a stage: conv1 and conv2 in parallel to conv3 to conv5."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        _add_unit(self, 1, inputs, inputs, 3, 2, inputs)
        _add_unit(self, 2, inputs, half, 1)
        _add_unit(self, 3, inputs, half, 1)
        _add_unit(self, 4, half, half, 3, 2, half)
        _add_unit(self, 5, half, half, 1)

    def forward(self, x):
        left = relu(_unit(self, 2, _unit(self, 1, x)))
        right = relu(_unit(self, 5, _unit(self, 4, relu(_unit(self, 3, x)))))
        return _shuffle(torch.cat([left, right], 1), 2), None


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that pads by half the kernel."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def _normalized(inputs: int, outputs: int, *size: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, *size), nn.BatchNorm2d(outputs))


def _add_unit(module: nn.Module, number: int, inputs: int, outputs: int, *size: int) -> None:
    """Adds a numbered convolution and its batch norm."""
    module.add_module(f"conv{number}", _conv(inputs, outputs, *size))
    module.add_module(f"bn{number}", nn.BatchNorm2d(outputs))


def _unit(module: nn.Module, number: int, x: Tensor) -> Tensor:
    x = module.get_submodule(f"conv{number}")(x)
    return module.get_submodule(f"bn{number}")(x)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of the groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _stages(block: Callable[..., nn.Module], inputs: int, widths, depths, strides):
    """Returns the blocks of every stage; only the first block has the stage's stride."""
    stages = []
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        first = block(inputs, width, stride)
        stages.append([first] + [block(width, width, 1) for _ in range(depth - 1)])
        inputs = width
    return stages


def _cifar_resnet(num_classes: int, *, depth: int, factor: int = 1, shortcut: str = "projection"):
    head, projection = {"projection": ("fc", "downsample"), "identity": ("linear", None)}[shortcut]
    stem, widths = 16 if factor == 1 else 32, (16 * factor, 32 * factor, 64 * factor)
    block = partial(ResidualBlock, projection=projection, bottleneck=False)
    stages = _stages(block, stem, widths, [(depth - 2) // 6] * 3, (1, 2, 2))
    return LayeredNetwork(num_classes, (3, stem, 3), stages, widths[-1], head)


def _big_resnet(num_classes: int, *, depths: tuple[int, ...], factor: int = 1, stem: str = "32"):
    widths = (64 * factor, 128 * factor, 256 * factor, 512 * factor)
    block = partial(ResidualBlock, projection="shortcut", bottleneck=factor == 4)
    stages = _stages(block, 64, widths, depths, (1, 2, 2, 2))
    return LayeredNetwork(num_classes, (3, 64, 3, {"32": 1, "64": 2}[stem]), stages, widths[-1])


def _shufflenet_v1(num_classes: int):
    stages = _stages(GroupedBlock, 24, (240, 480, 960), (4, 8, 4), (2, 2, 2))
    return LayeredNetwork(num_classes, (3, 24, 1), stages, 960)


def _shufflenet_v2(num_classes: int):
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return DownBlock(inputs, outputs) if stride == 2 else HalvingBlock(outputs)

    stages = _stages(block, 24, (116, 232, 464), (4, 8, 4), (2, 2, 2))
    return LayeredNetwork(num_classes, (3, 24, 1), stages, 464, last=1024)


_NETWORKS: dict[str, Callable[..., Network]] = {
    "resnet8x4": partial(_cifar_resnet, depth=8, factor=4),
    "resnet32x4": partial(_cifar_resnet, depth=32, factor=4),
    "resnet18": partial(_big_resnet, depths=(2, 2, 2, 2)),
    "resnet34": partial(_big_resnet, depths=(3, 4, 6, 3)),
    "resnet50": partial(_big_resnet, depths=(3, 4, 6, 3), factor=4),
    "vgg8": partial(VGG, depths=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, depths=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, depths=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, depths=(2, 2, 4, 4, 4)),
    "mobilenet_v2": MobileNetV2,
    "shufflenet_v1": _shufflenet_v1,
    "shufflenet_v2": _shufflenet_v2,
}
for _depth in (8, 14, 20, 32, 44, 56, 110):
    _NETWORKS[f"resnet{_depth}"] = partial(_cifar_resnet, depth=_depth)
for _depth, _factor in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10)):
    _NETWORKS[f"wrn_{_depth}_{_factor}"] = partial(WideResNet, depth=_depth, factor=_factor)
