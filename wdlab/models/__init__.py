"""Networks of ``configs/model``. ``wdlab.build`` passes ``input_shape`` and ``classes`` from the data set."""

from wdlab.models.gpt import GPT
from wdlab.models.mlp import MLP, FactorizedMLP
from wdlab.models.resnet import ResNet
from wdlab.models.vgg import VGG

__all__ = ["GPT", "MLP", "VGG", "FactorizedMLP", "ResNet"]
