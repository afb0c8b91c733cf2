"""Metrics that take long, of several networks: each as if it were measured alone, and equal ones once."""

import copy

import pytest
import torch

from tests.metrics.examples import random_images
from wdlab.metrics import costly
from wdlab.models import MLP


def networks():
    torch.manual_seed(0)
    first, other = (MLP((1, 4, 4), 3, 6, 3, norm="batch") for _ in range(2))
    in_a_weight, in_a_buffer = copy.deepcopy(first), copy.deepcopy(first)
    with torch.no_grad():
        in_a_weight.layers[1].weight[0, 0] += 1e-3
        in_a_buffer.layers[2].running_var[0] = 4.0
    return [first, other, copy.deepcopy(first), in_a_weight, in_a_buffer, copy.deepcopy(other)]


@pytest.mark.parametrize(("sharp", "full_gradient"), [(True, True), (True, False), (False, True), (False, False)])
def test_each_network_has_the_numbers_that_it_has_alone(sharp, full_gradient):
    models, data = networks(), random_images()
    together = costly.measure_costly(models, data, 8, sharp, full_gradient)
    alone = [costly.measure_costly([model], data, 8, sharp, full_gradient)[0] for model in models]
    assert together == alone
    if sharp:
        assert together[3]["sharpness/trace"] != together[0]["sharpness/trace"]
        assert together[4]["lipschitz/lower"] != together[0]["lipschitz/lower"]
    if full_gradient:
        assert together[3]["gradient/full_norm"] != together[0]["gradient/full_norm"]


def test_equal_networks_are_measured_once(monkeypatch):
    measured, measure = [], costly.measure_sharpness

    def counting(model, *args):
        measured.append(model)
        return measure(model, *args)

    monkeypatch.setattr(costly, "measure_sharpness", counting)
    models = networks()
    costly.measure_costly(models, random_images(), 8, True, False)
    assert list(map(id, measured)) == [id(models[k]) for k in (0, 1, 3, 4)]
