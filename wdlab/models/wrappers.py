"""torch's wrappers of networks that a run's own settings replace. ``wdlab.build`` takes them off."""

import warnings

from torch import nn

# Class name -> attribute of the wrapped network, setting to use instead. Names, not classes: importing torch's
# compiler takes seconds.
REPLACED_WRAPPERS = {
    "OptimizedModule": ("_orig_mod", "runtime.compile=true compiles the network"),
    "DataParallel": ("module", "torchrun shares a run between GPUs"),
    "DistributedDataParallel": ("module", "torchrun shares a run between GPUs"),
    "AveragedModel": ("module", "train.average_decay keeps an average of the weights"),
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network without the wrappers in ``REPLACED_WRAPPERS``, around it or around any part of it.

    The parts are unwrapped in place. For each wrapper a warning names the setting to use instead.
    """
    name = type(model).__name__
    if type(model).__module__.startswith("torch.") and name in REPLACED_WRAPPERS:
        inner, instead = REPLACED_WRAPPERS[name]
        warnings.warn(f"model: {name} is taken off the network; {instead}", stacklevel=2)
        return unwrapped(getattr(model, inner))
    for key, child in model.named_children():
        model._modules[key] = unwrapped(child)
    return model
