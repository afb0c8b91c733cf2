"""What is measured of a run's checkpoint, against the network itself."""

import pytest
import torch

from wdlab import session
from wdlab.homogeneous import homogeneous_pairs, weights
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config
from wdlab.studies import checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short PathProx run that switches units off, and its network."""
    overrides = ["model.width=16", "regularizer=pathprox", "regularizer.strength=0.03", "optimizer.lr=0.3"]
    config = compose_config(
        [*overrides, f"paths.runs={tmp_path_factory.mktemp('runs')}", "logger=disabled", "train.steps=100"]
    )
    session.run(config)
    return RunDirectory.of(config)


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


def test_pruning_leaves_the_answers(run):
    (row,) = checkpoints.pruned(run).to_dict("records")
    assert row["step"] == 100 and 0 < row["parameters"] < 1 and abs(row["test_accuracy_change"]) < 0.01
