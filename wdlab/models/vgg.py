"""VGG networks for small images, made of torchvision's layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from wdlab.models.checks import check_image, check_int

CONFIGURATIONS = {11: "A", 13: "B", 16: "D", 19: "E"}  # depth -> Simonyan and Zisserman's letter, as in torchvision
PUBLISHED_WIDTH = 64  # channels of the first layer
SMALLEST_IMAGE = 16  # pixels per side; four poolings halve them to 1


class VGG(nn.Module):
    """VGG-11, 13, 16 or 19 for small images: convolutions, average pooling, one linear layer.

    Maps (batch, *input_shape) to logits (batch, classes).

    Without batch norm, depth 19 is the network of P1 as released: convolutions with bias, Kaiming's fan-in
    initialization with zero biases, four max-poolings, the average of the last 2x2 pixels (of a 32x32 image), one
    linear layer. With batch norm, depth 16 is the network of P5.

    Args:
        input_shape: shape of one image, (channels, height, width), at least 16 x 16 pixels.
        classes: number of logits.
        width: channels of the first layer, published as 64. Later layers have up to 8 times as many.
        depth: 11, 13, 16 or 19, the number of layers with weights in the published network. This network has two
            linear layers fewer.
        batch_norm: True puts a batch norm after every convolution.

    Raises:
        ValueError: if ``depth`` is another number, ``width`` is below 1, the input is not an image or is too small, or
            ``batch_norm`` is not a bool.
    """

    def __init__(
        self, input_shape: Sequence[int], classes: int, width: int, depth: int, batch_norm: bool = False
    ) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers  # slow to import, and not needed by MLPs

        check_image(input_shape, SMALLEST_IMAGE)
        check_int("width", width, 1)
        if not isinstance(depth, int) or depth not in CONFIGURATIONS:
            raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, CONFIGURATIONS))}")
        if not isinstance(batch_norm, bool):
            raise ValueError(f"batch_norm={batch_norm!r}: must be true or false")
        plan = cfgs[CONFIGURATIONS[depth]][:-1]  # the average replaces the published last max-pooling
        self.features = make_layers([v if v == "M" else v * width // PUBLISHED_WIDTH for v in plan], batch_norm)
        if input_shape[0] != 3:
            self.features[0] = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.features(images)).flatten(1))
