"""Numbers of numpy and tensors of one element are numbers, wherever torch takes them."""

import copy

import numpy as np
import pytest
import torch

from tests.problem import same
from tests.regularizers.methods import network
from tests.regularizers.test_copies import train
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import (
    L2,
    CoherenceGate,
    ConstrainedRegularization,
    DecoupledDecay,
    Early,
    HuberDecay,
    Independent,
    Lp,
    MagnitudePruning,
    PNormDecay,
    PNormProx,
    ScheduledDecay,
)

KINDS = {
    "float32": np.float32,
    "float64": np.float64,
    "0-dim array": np.array,
    "tensor": lambda number: torch.tensor(number, dtype=torch.float64),
    "tensor of one": lambda number: torch.tensor([number], dtype=torch.float64),
}
VALUE = 0.25  # is a float32 too
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
drop_ins = pytest.mark.parametrize("make", [AdamS, SGDS, PAdam])


def trained(prepare):
    torch.manual_seed(0)
    model = network()
    optimizer = prepare(model)
    train(model, optimizer)
    return model, optimizer


@kinds
@drop_ins
def test_weight_decay_of_the_drop_in_optimizers(make, kind):
    plain, _ = trained(lambda model: make(model.parameters(), lr=0.01, weight_decay=VALUE))
    model, optimizer = trained(lambda model: make(model.parameters(), lr=0.01, weight_decay=kind(VALUE)))
    assert same(model, plain)
    assert type(optimizer.param_groups[0]["weight_decay"]) is float
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())


@kinds
@drop_ins
def test_weight_decay_set_in_a_group(make, kind):
    def prepare(value):
        def prepared(model):
            optimizer = make(model.parameters(), lr=0.01)
            optimizer.param_groups[0]["weight_decay"] = value
            return optimizer

        return prepared

    assert same(trained(prepare(VALUE))[0], trained(prepare(kind(VALUE)))[0])


METHODS = {
    "strength": lambda model, number: L2.for_model(model, number(VALUE)),
    "group": lambda model, number: L2([{"params": model.parameters(), "strength": number(VALUE)}], 0.1),
    "lp": lambda model, number: Lp.for_model(model, VALUE, p=number(0.5), epsilon=number(0.125)),
    "pnorm": lambda model, number: PNormDecay.for_model(model, VALUE, p=number(0.5)),
    "prox": lambda model, number: PNormProx.for_model(model, VALUE, p=number(1.5)),
    "pruning": lambda model, number: MagnitudePruning.for_model(
        model, VALUE, zeros=number(0.5), begin=number(0.25), end=number(0.75), steps=4
    ),
    "elastic": lambda model, number: PNormDecay.for_model(model, VALUE, ridge=number(0.5)),
    "huber": lambda model, number: HuberDecay.for_model(model, VALUE, delta=number(0.125)),
    "constrained": lambda model, number: ConstrainedRegularization.for_model(model, VALUE, warm_start=number(2.0)),
    "early": lambda model, number: DecoupledDecay.for_model(model, VALUE, over_time=Early(steps=number(2))),
    "peak": lambda model, number: DecoupledDecay.for_model(model, VALUE, over_time=Independent(peak_lr=number(2.0))),
    "gate": lambda model, number: L2.for_model(
        model, VALUE, over_time=CoherenceGate(threshold=number(-0.5), momentum=number(0.5))
    ),
}


@kinds
@pytest.mark.parametrize("name", METHODS)
def test_what_methods_are_given(name, kind):
    def prepare(number):
        def prepared(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            METHODS[name](model, number).attach(optimizer)
            return optimizer

        return prepared

    assert same(trained(prepare(kind))[0], trained(prepare(lambda number: number))[0])


@kinds
def test_momentum_and_betas_of_the_optimizer(kind):
    def prepare(number):
        def prepared(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
            optimizer.param_groups[0]["momentum"] = number(0.5)
            ScheduledDecay.for_model(model, VALUE).attach(optimizer)
            return optimizer

        return prepared

    if kind is np.float32 or kind is np.float64:
        assert same(trained(prepare(kind))[0], trained(prepare(float))[0])


def test_whole_numbers_stay_whole():
    assert L2(network().parameters(), np.int64(2)).strength == 2
    assert isinstance(L2(network().parameters(), np.int64(2)).strength, int)


@pytest.mark.parametrize(
    "value", [np.float32("nan"), np.array([0.1, 0.2]), torch.tensor(-1.0), np.bool_(True), torch.tensor(True), "0.1"]
)
@pytest.mark.parametrize("make", [lambda p, v: L2(p, v), lambda p, v: AdamS(p, weight_decay=v)], ids=["L2", "AdamS"])
def test_other_things_are_refused(make, value):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        make(network().parameters(), value)
