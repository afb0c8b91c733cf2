"""What the classes refuse: flags that are no bools, a model in place of parameters."""

import functools
import inspect

import pytest

from tests.regularizers.methods import network
from wdlab import regularizers
from wdlab.regularizers import PathProx, Regularizer


def flags_of(kind: type) -> list[str]:
    """Return the names of the arguments of a class that are True or False by default."""
    return [name for name, p in inspect.signature(kind).parameters.items() if isinstance(p.default, bool)]


KINDS = [kind for kind in vars(regularizers).values() if isinstance(kind, type) and issubclass(kind, Regularizer)]
FLAGS = [(kind, flag) for kind in KINDS for flag in flags_of(kind)]


@pytest.mark.parametrize(("kind", "flag"), FLAGS, ids=[f"{kind.__name__} {flag}" for kind, flag in FLAGS])
def test_a_flag_that_is_a_string_is_refused(kind, flag):
    with pytest.raises(ValueError, match=f"^{flag}='no': must be true or false"):
        kind.for_model(network(), 0.1, **{flag: "no"})


def test_the_flags_of_all_methods_are_found():
    found = {f"{kind.__name__} {flag}" for kind, flag in FLAGS}
    assert {"PNormDecay late", "PNormDecay compiled", "PathProx balance", "PathProx regularize_bias"} <= found


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_place_of_parameters_is_refused_with_advice(kind):
    name, expected = ("pairs", "pairs of layers") if kind is PathProx else ("params", "parameters or groups of parame")
    advice = (
        rf"^{name}: must be {expected}.*, got the module Sequential; use {kind.__name__}\.for_model\(model, strength\)$"
    )
    for make in (kind, functools.partial(kind, strength=0.1)):
        with pytest.raises(ValueError, match=advice):
            make(network())
        with pytest.raises(ValueError, match=advice):
            make(**{name: network()})
