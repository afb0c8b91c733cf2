"""Whatever the finite input: never a NaN. Shapes, strengths, p and learning rates from 0 over tiny to huge."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import (
    L1,
    L2,
    CoherenceGate,
    Coherent,
    ConstrainedRegularization,
    DecoupledDecay,
    GradientScale,
    HuberDecay,
    Lp,
    PathProx,
    PNormDecay,
    PNormProx,
    ScheduledDecay,
)
from wdlab.regularizers.routes import ROUTES

settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("quick")

numbers = st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1e-12, 1e-4, 0.1, 1.0, 10.0, 1e8, 1e20, 1e38, 1e200])
rates = st.sampled_from([0.0, 1e-45, 1e-30, 1e-12, 1e-4, 0.1, 1.0, 1e8, 1e38])  # torch's own SGD takes no more
values = st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1e-20, -1e-7, 0.01, -0.5, 1.0, 30.0, -1e5, 1e19, -1e38, 3.4e38])
powers = st.sampled_from([1e-3, 0.3, 0.5, 0.8, 1, 1.001, 1.5, 1.999, 2, 2.001, 3, 50.0])
shapes = st.sampled_from([(1,), (4,), (1, 1), (3, 2), (2, 3, 2, 2), (2, 0)])
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def tensor(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    drawn = data.draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(drawn, dtype=torch.float64).clamp(-3.3e38, 3.3e38).to(dtype).reshape(shape)


METHODS = {
    "decoupled": lambda w, s, p: DecoupledDecay(w, s),
    "cautious": lambda w, s, p: DecoupledDecay(w, s, cautious=True),
    "scheduled": lambda w, s, p: ScheduledDecay(w, s),
    "scheduled cautious": lambda w, s, p: ScheduledDecay(w, s, cautious=True),
    "pnorm cautious": lambda w, s, p: PNormDecay(w, s, p, cautious=True),
    "prox cautious": lambda w, s, p: PNormProx(w, s, 1, cautious=True),
    "pnorm": lambda w, s, p: PNormDecay(w, s, p),
    "pnorm late": lambda w, s, p: PNormDecay(w, s, p, late=True),
    "pnorm scheduled": lambda w, s, p: PNormDecay(w, s, p, over_time=GradientScale()),
    "pnorm coherent": lambda w, s, p: PNormDecay(w, s, p, over_time=CoherenceGate()),
    "elastic": lambda w, s, p: PNormDecay(w, s, p, ridge=s / 3),
    "elastic scheduled": lambda w, s, p: PNormDecay(w, s, p, ridge=1.0, over_time=GradientScale()),
    "huber": lambda w, s, p: HuberDecay(w, s, delta=p),
    "huber scheduled": lambda w, s, p: HuberDecay(w, s, delta=p, over_time=GradientScale()),
    "constrained": lambda w, s, p: ConstrainedRegularization(w, s, warm_start=1),
    "constrained scheduled": lambda w, s, p: ConstrainedRegularization(w, s, warm_start=1, over_time=GradientScale()),
    "prox of p=1": lambda w, s, p: PNormProx(w, s, 1),
    "prox of p=3/2": lambda w, s, p: PNormProx(w, s, 1.5),
    "prox scheduled": lambda w, s, p: PNormProx(w, s, 1.5, over_time=GradientScale()),
}


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data(), shape=shapes, dtype=dtypes, strength=numbers, p=powers, lr=rates)
def test_a_decay_behind_the_loss_makes_no_nan_and_grows_nothing(name, data, shape, dtype, strength, p, lr):
    """On gradients that are zero: what happens is the method's doing, and it only ever shrinks."""
    w = tensor(data, shape, dtype).requires_grad_()
    before = w.detach().clone()
    optimizer = torch.optim.SGD([w], lr=lr)
    METHODS[name]([w], strength, p).attach(optimizer)
    for _ in range(2):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert not w.isnan().any()
    assert (w.abs() <= before.abs()).all() and (w * before.sign() >= 0).all()
    assert (w[before == 0] == 0).all()


DROP_INS = {
    "AdamS": lambda g, lr, s, p: AdamS(g, lr=lr, weight_decay=s),
    "AdamS fused": lambda g, lr, s, p: AdamS(g, lr=lr, weight_decay=s, fused=True),
    "AdamS amsgrad": lambda g, lr, s, p: AdamS(g, lr=lr, weight_decay=s, amsgrad=True),
    "SGDS": lambda g, lr, s, p: SGDS(g, lr=lr, weight_decay=s, momentum=0.9),
    "PAdam": lambda g, lr, s, p: PAdam(g, lr=lr, weight_decay=s, p=p),
}
moderate = st.sampled_from([0.0, 1e-30, 1e-12, 1e-4, 0.1, 1.0])
weights = st.sampled_from([0.0, 1e-45, -1e-20, 1e-7, -0.01, 0.5, -30.0, 1e5])


@pytest.mark.parametrize("name", DROP_INS)
@given(data=st.data(), strength=numbers, p=powers, lr=moderate)
def test_a_drop_in_makes_no_nan(name, data, strength, p, lr):
    six = st.lists(weights, min_size=6, max_size=6)
    w = torch.tensor(data.draw(six)).reshape(2, 3).float().requires_grad_()
    optimizer = DROP_INS[name]([w], lr, strength, p)
    for _ in range(3):
        w.grad = torch.tensor(data.draw(six)).reshape(2, 3).float()
        optimizer.step()
    assert not w.isnan().any()


IN_LOSS = {
    "l2": lambda w, s, p: L2(w, s),
    "l1": lambda w, s, p: L1(w, s),
    "lp": lambda w, s, p: Lp(w, s, p),
    "coherent l1": lambda w, s, p: Coherent(w, s, penalty="l1"),
    "l1 by total gradient": lambda w, s, p: L1(w, s, over_time=CoherenceGate("total_gradient", 0.3)),
    "l2 by norm ratio": lambda w, s, p: L2(w, s, over_time=CoherenceGate("norm_ratio", 0.3)),
    **{f"l2 {r}": (lambda w, s, p, r=r: L2(w, s, route=r)) for r in ROUTES[1:]},
}
penalty_powers = st.sampled_from([1e-3, 0.5, 0.8, 1, 1.5, 2, 3])


@pytest.mark.parametrize("name", IN_LOSS)
@given(data=st.data(), strength=moderate, p=penalty_powers, lr=moderate)
def test_a_penalty_in_the_loss_makes_no_nan(name, data, strength, p, lr):
    w = torch.tensor(data.draw(st.lists(weights, min_size=6, max_size=6))).float().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    method = IN_LOSS[name]([w], strength, p)
    method.attach(optimizer)
    for _ in range(3):
        w.grad = torch.tensor(data.draw(st.lists(weights, min_size=6, max_size=6))).float()
        optimizer.step()
    assert not w.isnan().any()


@given(data=st.data(), strength=numbers, lr=rates, options=st.tuples(st.booleans(), st.booleans()), gate=st.booleans())
def test_pathprox_makes_no_nan(data, strength, lr, options, gate):
    layers = [nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1, bias=False)]
    for layer in layers:
        for p in layer.parameters():
            p.data.copy_(tensor(data, tuple(p.shape), torch.float32))
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    over_time = CoherenceGate(threshold=0.0) if gate else None
    pairs = [(layers[0], layers[1]), (layers[2], layers[3])]
    PathProx(pairs, strength, (), *options, over_time=over_time).attach(optimizer)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not any(p.isnan().any() for p in parameters)
