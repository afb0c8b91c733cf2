"""The loop: what a step does, and that nothing in it waits for the device."""

import pytest
import torch

from tests.test_train import TINY_CIFAR10, TINY_TEXT, rows
from wdlab import evaluate, session
from wdlab.build import build_parts
from wdlab.data import Batches
from wdlab.data import load as load_data
from wdlab.engine import averaging, device
from wdlab.engine.one_run import BatchGradient
from wdlab.errors import ConfigError
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import run_name
from wdlab.schedules import Clock

CHOICES = [
    "dataset=digits model=mlp optimizer=adam regularizer=pathprox train.clip_norm=1.0",
    f"{TINY_CIFAR10} model=resnet8 optimizer.momentum=0.9 regularizer=l2",
    f"{TINY_CIFAR10} model=vgg11 dataset.augment.rotation=10 dataset.augment.padding=reflect regularizer=coherent",
    f"{TINY_CIFAR10} model=vgg11_bn optimizer=adams runtime.precision=bf16",  # bf16 on a GPU only
    f"{TINY_TEXT} model=gpt optimizer=padam regularizer=none",
]


def steps_of(config, machine: device.Machine, with_model: bool = False):
    """The parts of a run that a step is made of, on a machine's device, as ``fit`` puts them together."""
    with machine.device:  # a network that is moved to meta has other parameters there than its optimizer
        model, optimizer, regularizer, _ = build_parts(config)
    machine.place(model)
    loaded = load_data(config["dataset"], config["paths"]["data"], machine.device)
    batches = Batches(loaded.train, config["train"]["batch_size"], 0)
    regularizer.clock = Clock(config["train"]["steps"], batches.steps_per_epoch)
    regularizer.attach(optimizer)
    update = BatchGradient(machine.training_form(model), optimizer, machine, config["train"]["clip_norm"])
    model.train()

    def step(k: int) -> torch.Tensor:
        loss = update.backward(*batches(k))
        update.clip()
        optimizer.step()
        return torch.isfinite(loss)

    return (step, model) if with_model else step


@pytest.mark.parametrize("choice", CHOICES)
def test_no_step_reads_a_value_back(compose, tiny_data, choice):
    config = compose(*choice.split(), "model.width=8", "train.batch_size=12", f"paths.data={tiny_data}")
    meta = device.Machine(torch.device("meta"), "fp32", "meta", "none")  # where reading a value raises
    step = steps_of(config, meta)
    for k in range(7):  # over the end of an epoch
        assert step(k).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("choice", CHOICES)
def test_no_step_waits_for_the_gpu(compose, tiny_data, choice):
    config = compose(*choice.split(), "runtime.device=cuda", "train.batch_size=12", f"paths.data={tiny_data}")
    machine = device.set_up(config["runtime"], build_parts(config)[0])
    step = steps_of(config, machine)
    step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(1, 7):
            step(k)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_networks_train_on_the_gpu_in_every_precision(compose, tiny_data, precision):
    choice = [*TINY_CIFAR10.split(), "model=resnet8", "train.batch_size=12", f"paths.data={tiny_data}"]
    config = compose(*choice, "runtime.device=cuda", f"runtime.precision={precision}")
    assert session.run(config) == "done"
    assert rows(config)[-1]["train/loss"] < 3


def test_compiled_training_agrees_with_eager(compose):
    eager, compiled = compose(runs_in="eager"), compose("runtime.compile=true", runs_in="compiled")
    assert run_name(eager) == run_name(compiled)
    session.run(eager)
    session.run(compiled)
    assert RunDirectory.of(compiled).read("provenance.json")["sessions"][0]["compile"] is True
    for one, other in zip(rows(eager), rows(compiled), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_the_gradient_of_the_whole_split_has_a_cadence_of_its_own(compose):
    config = compose("train.full_gradient_every=15", "regularizer=l2")
    session.run(config)
    measured = [(row["step"], "gradient/full_norm" in row) for row in rows(config)]
    assert measured == [(0, True), (10, False), (15, True), (20, True)]
    line = rows(config)[-1]
    assert 0 < line["gradient/full_weights_norm"] < line["gradient/full_norm"]
    plain = compose("regularizer=l2", runs_in="plain")
    session.run(plain)
    for row in rows(plain):  # to look at it changes nothing
        (same,) = [line for line in rows(config) if line["step"] == row["step"]]
        assert {key: same[key] for key in row} == row


def test_sharpness_has_a_cadence_of_its_own(compose):
    config = compose("train.sharpness_every=20", "train.sharpness_examples=50", "regularizer=l2")
    session.run(config)
    assert [(row["step"], "sharpness/trace" in row) for row in rows(config)] == [(0, True), (10, False), (20, True)]
    keys = {"sharpness/top_eigenvalue", "sharpness/trace", "scale_invariant/sharpness", "scale_invariant/trace"}
    assert keys | {"lipschitz/lower", "lipschitz/upper"} <= rows(config)[-1].keys()
    plain = compose("regularizer=l2", runs_in="plain")
    session.run(plain)
    for one, other in zip(rows(config), rows(plain), strict=True):  # to look at it changes nothing
        assert {key: one[key] for key in other} == other


def test_smoothed_labels_are_in_the_gradient_and_not_in_what_is_logged(compose):
    overrides = ("dataset=digits", "model=mlp", "train.steps=1", "train.log_every=1", "train.eval_every=1")
    plain, smooth = compose(*overrides), compose(*overrides, "train.label_smoothing=0.2")
    model = build_parts(smooth)[0]
    data = load_data(smooth["dataset"], smooth["paths"]["data"], torch.device("cpu"))
    inputs, labels = Batches(data.train, smooth["train"]["batch_size"], 0)(0)
    targets = 0.8 * torch.nn.functional.one_hot(labels, 10) + 0.02
    (-(targets * torch.log_softmax(model(inputs), 1)).sum(1).mean()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert session.run(plain) == session.run(smooth) == "done"
    ours, without = rows(smooth), rows(plain)
    assert ours[1]["gradient/loss_norm"] == pytest.approx(expected, rel=1e-5)
    assert ours[1]["gradient/loss_norm"] != pytest.approx(without[1]["gradient/loss_norm"], rel=1e-3)
    assert ours[0]["train/loss"] == without[0]["train/loss"]  # before the first step


def test_the_average_of_the_weights_is_that_of_the_formula_and_changes_nothing_else(compose, tiny_data):
    lengths = ("train.steps=6", "train.log_every=3", "train.eval_every=3", "train.batch_size=12")
    network = (*TINY_CIFAR10.split(), "model=resnet8", "model.width=4", "runtime.channels_last=never")
    plain = compose(*network, *lengths, f"paths.data={tiny_data}")
    averaged = compose(*network, *lengths, f"paths.data={tiny_data}", "train.average_decay=0.7")
    assert session.run(plain) == session.run(averaged) == "done"
    of_plain, of_averaged = rows(plain), rows(averaged)
    for one, other in zip(of_plain, of_averaged, strict=True):
        assert {key: other[key] for key in one} == one
    states = [checkpoint.load(RunDirectory.of(c)) for c in (plain, averaged)]
    assert all(torch.equal(states[0]["model"][key], states[1]["model"][key]) for key in states[0]["model"])
    assert "average" not in states[0]
    machine = device.Machine(torch.device("cpu"), "fp32", "cpu", "none")
    step, model = steps_of(plain, machine, with_model=True)
    expected = [p.detach().clone() for p in model.parameters()]
    for k in range(6):
        step(k)
        expected = [0.7 * a + 0.3 * p.detach() for a, p in zip(expected, model.parameters(), strict=True)]
    names = [name for name, _ in model.named_parameters()]
    for name, value in zip(names, expected, strict=True):
        assert torch.allclose(states[1]["average"][name], value, rtol=1e-4, atol=1e-6), name
    place = RunDirectory.of(averaged).path, [f"paths.data={tiny_data}"]
    found, of_average = evaluate.evaluate(*place)["metrics"], evaluate.evaluate(*place, average=True)["metrics"]
    for key in ("train/loss", "val/accuracy", "test/loss"):
        assert found[f"average/{key}"] == pytest.approx(of_averaged[-1][f"average/{key}"], rel=1e-5)
        assert of_average[key] == pytest.approx(found[f"average/{key}"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"has no average of the weights, .* without train\.average_decay"):
        evaluate.evaluate(RunDirectory.of(plain).path, place[1], average=True)


def test_an_average_has_batch_statistics_of_its_own(tiny_data, compose):
    config = compose(*TINY_CIFAR10.split(), "model=resnet8", "model.width=4", f"paths.data={tiny_data}")
    model = build_parts(config)[0]
    data = load_data(config["dataset"], config["paths"]["data"], torch.device("cpu"))
    average = averaging.WeightAverage(model, 0.9)
    state = torch.get_rng_state()
    network = average.refresh_batch_statistics(data.train)
    seen = []
    network.conv1.register_forward_hook(lambda *parts: seen.append(parts[2]))
    inputs, _ = data.train.examples(slice(0, len(data.train)))
    network(inputs)
    assert torch.allclose(network.bn1.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network.bn1.running_var, seen[0].var((0, 2, 3)), rtol=1e-4)
    assert model.bn1.momentum == 0.1 and torch.equal(state, torch.get_rng_state())
    assert (model.bn1.running_mean == 0).all()
