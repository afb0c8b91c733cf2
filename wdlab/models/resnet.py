"""Residual networks for small images, made of torchvision's basic blocks."""

from collections.abc import Sequence

from torch import Tensor, nn

from wdlab.models.checks import check_image, check_int

FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """A ResNet with the CIFAR stem: a 3x3 convolution of stride 1, and no pooling before the stages.

    Maps (batch, *input_shape) to logits (batch, classes).

    * Depths 18 and 34 have four stages, with the parameter names of torchvision's networks of these depths. P2 and P5
      train ResNet-18 in this form.
    * Depth 6 n + 2 has three stages of n blocks, as in the CIFAR section of He et al. 2016. The shortcut has a 1x1
      convolution where the shape changes.

    Each stage has twice as many channels as the stage before, and half the height and width. Convolutions are
    initialized by Kaiming's fan-out rule, as in torchvision.

    Args:
        input_shape: shape of one image, (channels, height, width).
        classes: number of logits.
        width: channels of the first stage. Published: 64 in ResNet-18, 16 in ResNet-8 and ResNet-20.
        depth: 18, 34, or 6 n + 2: 8, 14, 20, 26, ...
        zero_init_residual: True initializes the weight of every block's last batch norm to zero, so that the residual
            branch is zero at first. The same as torchvision's argument of this name.

    Raises:
        ValueError: if ``depth`` is another number, ``width`` is below 1, the input is not an image, or
            ``zero_init_residual`` is not a bool.
    """

    def __init__(
        self, input_shape: Sequence[int], classes: int, width: int, depth: int, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(zero_init_residual, bool):
            raise ValueError(f"zero_init_residual={zero_init_residual}: must be true or false")
        check_image(input_shape)
        check_int("width", width, 1)
        stages = blocks_per_stage(depth)
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels, layers = width, []
        for k, blocks in enumerate(stages):
            layers.append(_stage(channels, width * 2**k, blocks, stride=1 if k == 0 else 2))
            channels = width * 2**k
        self.layer1, self.layer2, self.layer3 = layers[:3]
        self.layer4 = layers[3] if len(layers) == 4 else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for block in (block for layer in layers for block in layer):
                nn.init.zeros_(block.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.fc(self.avgpool(hidden).flatten(1))


def blocks_per_stage(depth: int) -> tuple[int, ...]:
    """Return the number of basic blocks in each stage: for example (2, 2, 2, 2) for depth 18.

    Raises:
        ValueError: if ``depth`` is neither 18, 34 nor 6 n + 2.
    """
    check_int("depth", depth, 8)
    if depth in FOUR_STAGES:
        return FOUR_STAGES[depth]
    if (depth - 2) % 6:
        raise ValueError(f"depth={depth}: must be 18 or 34 (four stages), or 6 n + 2 (three): 8, 14, 20, 26, ...")
    return ((depth - 2) // 6,) * 3


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # slow to import, and not needed by MLPs

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, shortcut), *(BasicBlock(outputs, outputs) for _ in range(blocks - 1))
    )
