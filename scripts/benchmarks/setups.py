"""The parts of a run, built from a config, and torch's global settings. Shared by the sections that train."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.loaders import random_images
from benchmarks.timing import Options
from wdlab.build import build_parts, predictions_per_batch
from wdlab.data import Data, Images
from wdlab.data.augment import Augment
from wdlab.engine import device, fused
from wdlab.engine.device import Machine
from wdlab.engine.one_run import BatchGradient
from wdlab.records.identity import compose_config
from wdlab.regularizers import Regularizer

SGD = ("optimizer=sgd", "optimizer.lr=0.1")


class Switches(NamedTuple):
    """Torch's global settings of float32 products and threads. Every case applies its own before it runs."""

    matmul: str
    cudnn_tf32: bool
    threads: int

    @classmethod
    def now(cls) -> Self:
        """Return torch's current settings."""
        threads = torch.get_num_threads()
        return cls(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, threads)

    def __call__(self) -> None:
        """Apply these settings to torch."""
        torch.set_float32_matmul_precision(self.matmul)
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


TORCH_DEFAULTS = Switches.now()


class Setup:
    """The parts of the run of ``python -m wdlab.train <overrides>``, without the data set.

    Args:
        options: the options of the benchmark's command line.
        overrides: overrides of the run's config.
    """

    def __init__(self, options: Options, *overrides: str) -> None:
        places = (f"runtime.device={options.device.type}", "logger=disabled", "regularizer=none")
        self.config: DictConfig = compose_config([*places, *SGD, *overrides])
        self.model: nn.Module
        self.regularizer: Regularizer
        self.model, self.optimizer, self.regularizer, self.lr_factor = build_parts(self.config)
        TORCH_DEFAULTS()
        examples = predictions_per_batch(self.config)
        self.machine: Machine = device.set_up(self.config["runtime"], self.model, examples=examples)
        self.switches = Switches.now()
        self.machine.place(self.model)
        fused.choose_step(self.model, self.optimizer, self.machine.fused)
        TORCH_DEFAULTS()

    def step(self) -> Callable[[Tensor, Tensor], None]:
        """Return a function of inputs and labels that takes a training step as wdlab's loop does."""
        update = BatchGradient(self.machine.training_form(self.model), self.optimizer, self.machine)

        def step(inputs: Tensor, labels: Tensor) -> None:
            self.switches()
            update.backward(inputs, labels)
            self.optimizer.step()

        return step

    def images(self, count: int, varied: bool = False) -> Images:
        """Return ``count`` random images of the data set's shape; ``varied``: augmented as the config says."""
        dataset = self.config["dataset"]
        pixels, labels = random_images(tuple(dataset["shape"]), count)
        augment = Augment.from_config(dataset["augment"]) if varied else None
        return Images(pixels, labels, list(dataset["mean"]), list(dataset["std"]), self.machine.device, augment)

    def data(self, train: int, others: int) -> Data:
        """Return splits of random images: ``train`` for training, ``others`` for validation and as many for test."""
        return Data(self.images(train, varied=True), self.images(others), self.images(others), "random")


def bare_step(options: Options, *overrides: str) -> tuple[Callable[[Tensor, Tensor], None], nn.Module]:
    """Return the training step of a plain PyTorch loop under torch's default settings, and the loop's network."""
    model = build_parts(compose_config([*SGD, *overrides]))[0].to(options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return plain_step(model, optimizer, TORCH_DEFAULTS), model


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, switches: Callable[[], Any]
) -> Callable[[Tensor, Tensor], None]:
    """Return a function of inputs and labels that calls ``switches``, forward, backward and the optimizer's step."""

    def step(inputs: Tensor, labels: Tensor) -> None:
        switches()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step
