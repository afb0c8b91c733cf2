"""What is measured of a run's checkpoint, against the network itself."""

import copy

import pytest
import torch
from torch import nn

from wdlab import data, session
from wdlab.build import build_parts
from wdlab.homogeneous import homogeneous_pairs, unit_path_norms, weights
from wdlab.metrics.objective import cross_entropy, evaluate_split
from wdlab.pruning import prune_dead_units
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config
from wdlab.studies import checkpoints


def trained(folder, *overrides):
    """The directory of a run of 100 steps on digits, with a network 16 wide."""
    words = ["model.width=16", f"paths.runs={folder}", "logger=disabled", "train.steps=100", *overrides]
    config = compose_config(words)
    session.run(config)
    return RunDirectory.of(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A PathProx run that switches units off."""
    overrides = ["regularizer=pathprox", "regularizer.strength=0.03", "optimizer.lr=0.3"]
    return trained(tmp_path_factory.mktemp("runs"), *overrides)


@pytest.fixture(scope="module")
def splits():
    return data.load(compose_config([])["dataset"], "unused", torch.device("cpu"))


@pytest.fixture(scope="module")
def model(run):
    network = checkpoints._as_begun(run)
    network.load_state_dict(checkpoint.load(run)["model"])
    return network


def test_norms_of_units_at_both_ends(run, model):
    rows = checkpoints.unit_norms(run)
    assert set(rows["step"]) == {0, 100} and len(rows) == 2 * 32
    (first, second), _ = homogeneous_pairs(model)
    last = rows[(rows["step"] == 100) & (rows["pair"] == 0)]
    for k, unit in enumerate(last.itertuples()):
        assert unit.input_norm == pytest.approx(first.weight[k].norm().item(), rel=1e-5)
        assert unit.output_norm == pytest.approx(second.weight[:, k].norm().item(), rel=1e-5, abs=1e-12)
    assert (rows["output_norm"] == 0).any() and (rows.loc[rows["step"] == 0, "output_norm"] > 0).all()


def test_shares_of_sizes_add_up(run, model):
    rows = checkpoints.weight_sizes(run)
    sizes = torch.cat([w.flatten() for w in weights(model)]).abs()
    assert rows["zero"].iloc[0] == pytest.approx((sizes < 1e-13).double().mean().item()) and rows["zero"].iloc[0] > 0
    assert rows["share"].sum() + rows["zero"].iloc[0] == pytest.approx(1)
    above = rows.loc[rows["log10_size"] >= -1 - 1e-9, "share"].sum()
    assert above == pytest.approx((sizes >= 0.1).double().mean().item())


def test_units_in_use_have_an_imbalance_of_their_own(run, model):
    rows = checkpoints.unit_norms(run)
    last = rows[rows["step"] == 100]
    squares = products = 0.0
    for number, (first, second) in enumerate(homogeneous_pairs(model)):
        w, v = first.weight.detach().norm(dim=1), second.weight.detach().norm(dim=0)
        used = w * v > 0.01 * (w * v).max()
        squares, products = squares + (w**2 + v**2)[used].sum(), products + (w * v)[used].sum()
        shares = last.loc[last["pair"] == number, "path_share"].to_numpy()
        assert shares == pytest.approx((w * v / (w * v).max()).numpy(), rel=1e-5)
    assert last["imbalance_in_use"].nunique() == 1
    assert last["imbalance_in_use"].iloc[0] == pytest.approx((1 - 2 * products / squares).item(), rel=1e-4)


def test_balanced_units_have_no_imbalance_and_dead_ones_count_for_nothing():
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    network[0].weight.data = torch.tensor([[3.0, 4.0], [0.0, 2.0], [7.0, 0.0]])
    network[2].weight.data = torch.tensor([[5.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    units = checkpoints._norms(network, 7)
    assert units["path_share"].tolist() == [1.0, pytest.approx(4 / 25), 0.0]
    assert units["imbalance_in_use"].abs().max() < 1e-12
    network[2].weight.data *= 2  # |v| = 2 |w|: 1 - 2 * 2 / (1 + 4)
    assert checkpoints._norms(network, 7)["imbalance_in_use"].iloc[0] == pytest.approx(0.2)
    network[2].weight.data *= 0
    unused = checkpoints._norms(network, 7)
    assert (unused["path_share"] == 0).all() and unused["imbalance_in_use"].isna().all()


def test_pruning_dead_units_leaves_the_answers(run, model):
    rows = checkpoints.pruned(run).set_index("share")
    dead = rows.loc[0.0]
    assert dead["step"] == 100 and 0 < dead["parameters"] < 1 and abs(dead["test_accuracy_change"]) < 0.01
    active = torch.cat(unit_path_norms(homogeneous_pairs(model))) > 0
    assert dead["units"] == pytest.approx(active.double().mean().item())
    smaller = prune_dead_units(model)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (smaller, model)]
    assert dead["parameters"] == pytest.approx(sizes[0] / sizes[1])


def test_small_units_are_removed_by_the_share_of_the_largest_path(run, model, splits):
    rows = checkpoints.pruned(run)
    assert rows["share"].tolist() == [0.0, 0.1]
    assert rows["units"].is_monotonic_decreasing and rows["parameters"].is_monotonic_decreasing
    for row in rows.itertuples():
        masked = copy.deepcopy(model)
        kept = total = 0
        for first, second in homogeneous_pairs(masked):
            paths = first.weight.detach().norm(dim=1) * second.weight.detach().norm(dim=0)
            small = (paths < row.share * paths.max()) | (paths == 0)
            second.weight.data[:, small] = 0
            kept, total = kept + (~small).sum().item(), total + len(small)
        assert row.units == pytest.approx(kept / total)
        for split, accuracy in ((splits.val, row.val_accuracy), (splits.test, row.test_accuracy)):
            assert accuracy == pytest.approx(evaluate_split(masked, split)[1].item(), abs=1 / len(split))
    assert rows["units"].iloc[-1] < rows["units"].iloc[0]


def test_weights_below_each_threshold_are_set_to_zero(run, model, splits):
    rows = checkpoints.zeroed(run)
    assert rows["threshold"].tolist() == [1e-13, 1e-10, 1e-6, 1e-4, 1e-3, 1e-2]
    for row in rows.itertuples():
        sparse = copy.deepcopy(model)
        for w in weights(sparse):
            w.data = torch.where(w.abs() < row.threshold, 0.0, w.data)
        zeros = torch.cat([w.flatten() for w in weights(sparse)]) == 0
        assert row.share == pytest.approx(zeros.double().mean().item())
        assert row.train_accuracy == evaluate_split(sparse, splits.train)[1].item()
        assert row.test_accuracy == evaluate_split(sparse, splits.test)[1].item()
    assert rows["share"].iloc[0] > 0 and rows["share"].iloc[-1] > rows["share"].iloc[0]


STRENGTH = 0.02
METHODS = {  # the penalty's gradient that belongs to the total one, by the method
    "regularizer=l2": lambda w: STRENGTH * w,
    "regularizer=l1": lambda w: STRENGTH * w.sign(),
    "regularizer=decoupled": lambda w: 0 * w,
}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_whole_split(method, splits, tmp_path):
    directory = trained(tmp_path, method, f"regularizer.strength={STRENGTH}")
    (row,) = checkpoints.gradients(directory).to_dict("records")
    model = build_parts(directory.read_config()).model
    model.load_state_dict(checkpoint.load(directory)["model"])
    decayed = weights(model.double())
    inputs, labels = splits.train.examples(slice(None))
    loss = cross_entropy(model(inputs.double()), labels)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert row["step"] == 100 and row["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["loss_gradient"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    products = [w.grad.norm() * w.detach().norm() for w in decayed]
    assert row["gradient_times_weight"] == pytest.approx(sum(products).item(), rel=1e-4)
    for w in decayed:
        w.grad += METHODS[method](w.detach())
    total = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert row["total_gradient"] == pytest.approx(total.norm().item(), rel=1e-4)


def test_a_strength_that_has_ended_is_in_no_gradient(tmp_path):
    early = ["regularizer=l2", "regularizer/over_time=early", "regularizer.over_time.epochs=1"]
    (row,) = checkpoints.gradients(trained(tmp_path, *early, "regularizer.strength=0.1")).to_dict("records")
    assert row["total_gradient"] == row["loss_gradient"]
