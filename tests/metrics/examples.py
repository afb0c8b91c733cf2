"""A tiny data set in the form that the metrics read."""

from types import SimpleNamespace

import torch


class Examples:
    """Inputs and labels as a split of ``wdlab.data`` gives them."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def examples(self, rows):
        return self.inputs[rows], self.labels[rows]


def random_images(shape=(1, 4, 4), classes=3, count=12, dtype=torch.float32):
    """Three splits, equal but for their size."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (count,), generator=generator)
    return SimpleNamespace(
        **{name: Examples(inputs[:n], labels[:n]) for name, n in (("train", count), ("val", 5), ("test", 6))}
    )


def make_step(metrics, optimizer, inputs, labels):
    """One update with everything that is measured around it."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(metrics.models[0](inputs), labels).backward()
    metrics.before_step()
    optimizer.step()
    metrics.after_step()
