"""Networks against the published ones they stand for."""

import itertools
import math

import pytest
import torch
from torch import nn

from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.homogeneous import homogeneous_pairs, weights
from wdlab.models import GPT, MLP, VGG, ResNet
from wdlab.records.identity import CONFIGS, compose_config

CIFAR = (3, 32, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "name"), [(18, "resnet18"), (34, "resnet34")])
def test_resnets_are_torchvisions_with_another_stem(depth, name):
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = ResNet(CIFAR, 10, 64, depth), getattr(torchvision.models, name)(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, *CIFAR)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_blocks_may_begin_as_the_identity():
    torch.manual_seed(0)
    usual = ResNet((3, 8, 8), 10, 4, 18)
    torch.manual_seed(0)
    model = ResNet((3, 8, 8), 10, 4, 18, zero_init_residual=True)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, usual.get_parameter(name))]
    assert changed == [f"layer{k}.{block}.bn2.weight" for k in (1, 2, 3, 4) for block in (0, 1)]
    hidden = torch.rand(2, 4, 8, 8)
    assert torch.equal(model.layer1(hidden), hidden)


@pytest.mark.parametrize(("depth", "layers"), [(8, 8), (20, 20), (32, 32)])
def test_small_resnets_have_as_many_layers_as_they_say(depth, layers):
    model = ResNet(CIFAR, 10, 16, depth)
    counted = [
        m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and getattr(m, "kernel_size", 3) != (1, 1)
    ]
    assert len(counted) == layers
    assert model(torch.randn(2, *CIFAR)).shape == (2, 10)


def test_resnet20_has_its_published_size():
    published, shortcuts = 269_722, 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64  # the paper's own shortcuts have no parameters
    assert parameters(ResNet(CIFAR, 10, 16, 20)) == published + shortcuts


def convolutions(plan: list, width: int) -> int:
    sizes = [3, *(v * width // 64 for v in plan)]
    return sum(9 * a * b + b for a, b in itertools.pairwise(sizes))


def test_an_mlp_with_batch_norm_has_it_before_each_relu_and_no_bias_there():
    model = MLP((1, 2, 2), 3, width=5, depth=3, norm="batch")
    kinds = [nn.Flatten, *(nn.Linear, nn.BatchNorm1d, nn.ReLU) * 2, nn.Linear]
    assert [type(m) for m in model.layers] == kinds
    linear = [m for m in model.layers if isinstance(m, nn.Linear)]
    assert [m.bias is None for m in linear] == [True, True, False]
    assert weights(model) == [m.weight for m in linear] and homogeneous_pairs(model) == []
    inputs = torch.randn(7, 1, 2, 2)
    before = model(inputs)
    with torch.no_grad():
        linear[0].weight.mul_(4)
    assert torch.allclose(model(inputs), before, atol=1e-3)  # the epsilon of a batch norm is 1e-5 of a variance


VGG19 = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
VGG16 = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


@pytest.mark.parametrize(("depth", "plan"), [(16, VGG16), (19, VGG19)])
@pytest.mark.parametrize("width", [8, 64])
def test_vggs_have_their_published_layers(depth, plan, width):
    model = VGG(CIFAR, 10, width, depth)
    assert parameters(model) == convolutions(plan, width) + 8 * width * 10 + 10
    bn = VGG(CIFAR, 10, width, depth, batch_norm=True)
    assert parameters(bn) - parameters(model) == 2 * sum(v * width // 64 for v in plan)


def test_vgg19_is_the_released_one_of_pathprox():
    torch.manual_seed(0)
    model = VGG(CIFAR, 10, 64, 19)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for layer in layers:  # Kaiming, fan-in, for ReLU
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert layer.bias.abs().max() == 0
    pairs = homogeneous_pairs(model)
    convolutional = layers[:16]
    assert pairs == [(convolutional[i], convolutional[i + 1]) for i in range(0, 16, 2)]
    paired = {id(m.weight) for pair in pairs for m in pair}
    assert [w.shape for w in weights(model) if id(w) not in paired] == [(10, 512)]
    seen = []
    model.features.register_forward_hook(lambda *args: seen.append(args[2].shape))
    images = torch.randn(2, *CIFAR)
    features = model.features(images)
    assert seen[0] == (2, 512, 2, 2)
    expected = model.fc(nn.functional.avg_pool2d(features, 2).flatten(1))
    assert torch.allclose(model(images), expected, rtol=1e-5, atol=1e-6)


def test_a_gpt_sees_the_past_alone_and_starts_near_chance():
    torch.manual_seed(0)
    model = GPT((16,), 65, width=32, depth=3, heads=4).eval()
    tokens = torch.randint(65, (4, 16))
    logits = model(tokens)
    assert logits.shape == (4, 16, 65)
    later = tokens.clone()
    later[:, 9:] = torch.randint(65, (4, 7))
    assert torch.allclose(model(later)[:, :9], logits[:, :9], atol=1e-6)
    assert not torch.allclose(model(later)[:, 9:], logits[:, 9:], atol=1e-3)
    assert torch.allclose(model(tokens[:, :5]), logits[:, :5], atol=1e-6)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(65, (64,)))
    assert loss.item() == pytest.approx(math.log(65), rel=0.05)


def test_a_gpts_embedding_is_its_output_layer_and_all_its_layers_are_decayed():
    model = GPT((16,), 65, width=32, depth=2, heads=4)
    assert model.head.weight is model.token.weight
    owners = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert len(weights(model)) == len(owners) - 1 == 2 + 2 * 4
    relu = GPT((16,), 65, width=32, depth=2, heads=4, activation="relu")
    assert homogeneous_pairs(model) == [] and homogeneous_pairs(relu) == [(b.mlp[0], b.mlp[2]) for b in relu.blocks]


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml") if p.stem != "gpt"))
@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
def test_every_network_reads_every_kind_of_image(name, dataset):
    config = compose_config([f"dataset={dataset}", f"model={name}", "model.width=8"])
    model = build_parts(config)[0]
    images = torch.randn(2, *config["dataset"]["shape"])
    logits = model(images)
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


BAD = {
    "model.norm=layer": "model.norm='layer': must be null or batch",
    "model.norm=batch regularizer=pathprox": "regularizer: MLP has no pair Linear-ReLU-Linear or Conv-ReLU-Conv",
    "model=resnet18 model.depth=12": "model.depth=12: must be 18 or 34",
    "model=resnet8 model.depth=0": "model.depth=0: must be a whole number >= 8",
    "model=resnet18 model.zero_init_residual=2": "model.zero_init_residual=2: must be true or false",
    "model=resnet18 model.width=-1": "model.width=-1: must be a whole number >= 1",
    "model=vgg16 dataset=mnist model.depth=12": "model.depth=12: must be one of 11, 13, 16, 19",
    "model=vgg16 dataset=mnist model.batch_norm=3": "model.batch_norm=3: must be true or false",
    "model=vgg16": "model: needs images of at least 16 x 16 pixels, the data set has 8 x 8",
    "model=gpt": r"model: reads text, tokens \(context,\), the data set has examples of shape \(1, 8, 8\)",
    "model=mlp dataset=tinyshakespeare": r"model: reads images \(channels, height, width\), .* of shape \(128,\)",
    "model=resnet18 dataset=tinyshakespeare": r"model: reads images",
    "model=gpt dataset=tinyshakespeare model.heads=3": "model.width=128: must be a multiple of heads=3",
    "model=gpt dataset=tinyshakespeare model.dropout=1": r"model.dropout=1: must be a number in \[0, 1\)",
    "model=gpt dataset=tinyshakespeare model.activation=tanh": "model.activation='tanh': must be one of gelu, relu",
}


@pytest.mark.parametrize("overrides", BAD)
def test_a_network_that_cannot_be_built_is_told_in_one_line(overrides):
    with pytest.raises(ConfigError, match=f"^{BAD[overrides]}"):
        build_parts(compose_config(overrides.split()))
