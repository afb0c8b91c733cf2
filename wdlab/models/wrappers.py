"""Removal of torch's wrappers around a network, which settings of a run replace. Called by ``wdlab.build``."""

import warnings

from torch import nn

# Class name of a wrapper -> its attribute that holds the network, and the setting to use instead. The keys are names,
# not classes, since importing torch's compiler takes seconds.
REPLACED_WRAPPERS = {
    "OptimizedModule": ("_orig_mod", "runtime.compile=true compiles the network"),
    "DataParallel": ("module", "torchrun shares a run between GPUs"),
    "DistributedDataParallel": ("module", "torchrun shares a run between GPUs"),
    "AveragedModel": ("module", "train.average_decay keeps an average of the weights"),
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network without the wrappers in ``REPLACED_WRAPPERS``, around the whole network or a submodule.

    Submodules are unwrapped in place. For each wrapper a warning names the setting to use instead.
    """
    name = type(model).__name__
    if type(model).__module__.startswith("torch.") and name in REPLACED_WRAPPERS:
        inner, instead = REPLACED_WRAPPERS[name]
        warnings.warn(f"model: {name} is removed from the network; {instead}", stacklevel=2)
        return unwrapped(getattr(model, inner))
    for key, child in model.named_children():
        model._modules[key] = unwrapped(child)
    return model
