"""What torch wraps networks in, where a run has a setting of its own for that. Called by ``train``."""

import warnings

from torch import nn

INSTEAD = {  # by the name of the class, since importing torch's compiler takes seconds
    "OptimizedModule": ("_orig_mod", "runtime.compile=true compiles the network"),
    "DataParallel": ("module", "torchrun shares a run between GPUs"),
    "DistributedDataParallel": ("module", "torchrun shares a run between GPUs"),
    "AveragedModel": ("module", "train.average_decay keeps an average of the weights"),
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network, and every part of it, without what it is wrapped in; a warning says what to use instead."""
    name = type(model).__name__
    if type(model).__module__.startswith("torch.") and name in INSTEAD:
        inner, instead = INSTEAD[name]
        warnings.warn(f"model: {name} is taken off the network; {instead}", stacklevel=2)
        return unwrapped(getattr(model, inner))
    for key, child in model.named_children():
        model._modules[key] = unwrapped(child)
    return model
