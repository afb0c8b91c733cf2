"""The gradients of several networks side by side by ``torch.func``, against one network after another.

This decides which networks a stack supports: only those that are faster side by side than one per core.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.setups import TORCH_DEFAULTS
from benchmarks.timing import SPEED_UP, Case, Options, Part, part
from wdlab.build import build_parts
from wdlab.metrics import cross_entropy
from wdlab.records.identity import compose_config

REPEATS = 5
RUNS = 4
NETWORKS = {  # title: overrides, examples in a batch
    "ResNet-8 on images as CIFAR-10": (("dataset=cifar10", "model=resnet8"), 128),
    "ResNet-8 of width 8 on images as digits": (("dataset=digits", "model=resnet8", "model.width=8"), 64),
    "GPT on text as Tiny Shakespeare": (("dataset=tinyshakespeare", "model=gpt"), 16),
}
REMARK = (
    "Batch norm uses the statistics of the batch and keeps none, and there is no dropout. On a CPU every case runs on "
    "one thread, as runs that are trained one per core do."
)


def parts(options: Options) -> list[Part]:
    """Return the times of forward and backward passes of ``RUNS`` networks."""
    return [_part(title, *NETWORKS[title], options) for title in list(NETWORKS)[: options.sized(None, 1)]]


def _part(title: str, overrides: tuple[str, ...], batch: int, options: Options) -> Part:
    config = compose_config(list(overrides))
    networks = [_without_memory(build_parts(config).model.to(options.device)) for _ in range(RUNS)]
    shape, classes = list(config["dataset"]["shape"]), config["dataset"]["classes"]
    if len(shape) == 1:  # text
        inputs, labels = (torch.randint(classes, (batch, *shape), device=options.device) for _ in range(2))
    else:
        inputs = torch.randn(batch, *shape, device=options.device)
        labels = torch.randint(classes, (batch,), device=options.device)
    base = Case("one after another", _on_one_thread(lambda: _one_by_one(networks, inputs, labels)))
    cases = [Case("side by side, torch.func.vmap", _on_one_thread(_side_by_side(networks, inputs, labels)))]
    problem = f"forward and backward passes of {RUNS} networks, batches of {batch}, fp32"
    made = part(title, problem, base, cases, options.at_most(REPEATS), SPEED_UP)
    made.remarks.append(REMARK)
    return made


def _without_memory(network: nn.Module) -> nn.Module:
    """Return the network with batch norm's running statistics and dropout removed, which vmap does not support."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def _one_by_one(networks: list[nn.Module], inputs: Tensor, labels: Tensor) -> None:
    for network in networks:
        network.zero_grad()
        cross_entropy(network(inputs), labels).backward()


def _side_by_side(networks: list[nn.Module], inputs: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a function that computes the gradients of all networks at once."""
    params, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(skeleton, (params, buffers), (inputs,)), labels)

    gradients = vmap(grad(loss))
    several = [torch.stack([t] * len(networks)) for t in (inputs, labels)]
    return lambda: gradients(params, buffers, *several)


def _on_one_thread(run: Callable[[], object]) -> Callable[[], object]:
    def timed() -> object:
        TORCH_DEFAULTS._replace(threads=1)()
        return run()

    return timed
