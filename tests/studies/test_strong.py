"""Probes of strong regularization: bytes counted by hand, the strength in force, and what zeroing does to a network."""

import json

import pytest
import torch

from tests.studies.test_checkpoints import trained
from wdlab.errors import WdlabError
from wdlab.homogeneous import weights
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.studies import strong

L1 = ("regularizer=l1", "regularizer.strength=0.001", "optimizer.lr=0.05", "optimizer.momentum=0.9")


def test_bytes_of_a_sparse_matrix_are_values_columns_and_pointers():
    weight = torch.zeros(3, 100)
    assert strong.sparse_bytes(weight) == 4 * 2
    weight[0, :5] = 1.0
    assert strong.sparse_bytes(weight) == 5 * (4 + 2) + 4 * 2
    assert strong.sparse_bytes(torch.ones(3, 100)) == 3 * 100 * 4  # dense is smaller


def test_indices_that_do_not_fit_in_two_bytes_have_four():
    wide = torch.zeros(1, 2**15 + 1)
    wide[0, 0] = 1.0
    assert strong.sparse_bytes(wide) == (4 + 4) + 2 * 2
    assert strong.sparse_bytes(wide[:, :-1]) == (4 + 2) + 2 * 2
    many = torch.zeros(2**8, 2**10)
    many[:, : 2**7] = 1.0  # 2**15 weights
    assert strong.sparse_bytes(many) == 2**15 * (4 + 2) + 257 * 4
    many[0, 0] = 0.0
    assert strong.sparse_bytes(many) == (2**15 - 1) * (4 + 2) + 257 * 2


def test_a_row_of_a_convolution_is_an_output_channel():
    kernel = torch.zeros(4, 2, 3, 3)
    kernel[1, 0, 1, 1] = 1.0
    assert strong.sparse_bytes(kernel) == strong.sparse_bytes(kernel.flatten(1)) == (4 + 2) + 5 * 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"), *L1)


def test_weights_below_one_step_are_zero_and_the_size_is_that_of_what_is_left(run):
    exact, cut = strong.compressed(run).itertuples()
    assert (exact.cut, cut.cut) == ("exact", "one_step")
    assert cut.threshold == pytest.approx(0.05 * 0.001 / (1 - 0.9))
    state = checkpoint.load(run)["model"]
    of_weights = [w for name, w in state.items() if name.endswith("weight")]
    of_biases = sum(b.numel() for name, b in state.items() if name.endswith("bias"))
    count = sum(w.numel() for w in of_weights)
    left = [w * (w.abs() >= cut.threshold) for w in of_weights]
    assert cut.density == pytest.approx(sum(int((w != 0).sum()) for w in left) / count)
    assert 0 < cut.density < exact.density == 1.0 and exact.compression == pytest.approx(1.0)
    smaller = 4 * of_biases + sum(strong.sparse_bytes(w) for w in left)
    assert cut.compression == pytest.approx(4 * (count + of_biases) / smaller)


def test_accuracies_are_those_of_the_network_after_zeroing(run):
    logged = json.loads(run.metrics.read_text().splitlines()[-1])
    exact, cut = strong.compressed(run).itertuples()
    assert exact.test_accuracy == pytest.approx(logged["test/accuracy"], abs=1e-6) and exact.test_accuracy_change == 0
    opened = strong.evaluate.open_run(run.path)
    with torch.no_grad():
        for w in weights(opened.built.model):
            w[w.abs() < cut.threshold] = 0.0
    after = strong.evaluate_split(opened.built.model, opened.data.test, opened.machine.autocast)[1].item()
    assert cut.test_accuracy == pytest.approx(after)
    assert cut.test_accuracy_change == pytest.approx(after - exact.test_accuracy)


def test_a_proximal_method_has_exact_zeros(tmp_path):
    run = trained(tmp_path, "regularizer=pnorm_prox", "regularizer.p=1", "regularizer.strength=0.05")
    exact = strong.compressed(run).iloc[0]
    logged = json.loads(run.metrics.read_text().splitlines()[-1])
    assert exact["density"] == pytest.approx(1 - logged["sparsity/weights"]) and exact["density"] < 1


def written(folder, strengths) -> RunDirectory:
    """A directory with log lines of every tenth step."""
    run = RunDirectory(folder, "run")
    run.path.mkdir()
    end = {"val/loss": 2.0}
    lines = [{"step": 10 * k, "strength": s, "test/accuracy": 0.1 * k, **end} for k, s in enumerate(strengths)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_mean_strength_counts_steps_without_a_penalty_and_not_the_line_before_the_first_step(tmp_path):
    (row,) = strong.in_force(written(tmp_path, [0.3, 0.0, 0.3, 0.3, 0.0, 0.3])).itertuples()
    assert (row.step, row.mean_strength, row.share_in_force) == (50, pytest.approx(0.18), pytest.approx(0.6))
    assert (row.test_accuracy, row.val_loss) == (pytest.approx(0.5), 2.0)


def test_a_run_without_steps_has_no_strength_in_force(tmp_path):
    with pytest.raises(WdlabError, match="no log line after the first step"):
        strong.in_force(written(tmp_path, [0.3]))


def test_a_delay_of_half_the_run_halves_the_mean_strength(tmp_path):
    delayed = ("regularizer/over_time=delayed", "regularizer.over_time.epochs=null", "regularizer.over_time.steps=50")
    row = strong.in_force(trained(tmp_path, *L1, *delayed, "train.log_every=5")).iloc[0]
    assert row["share_in_force"] == pytest.approx(0.5, abs=0.06)
    assert row["mean_strength"] == pytest.approx(0.001 * row["share_in_force"])


def test_a_norm_has_fallen_at_the_first_line_with_a_fifth_of_its_first_value(tmp_path):
    run = RunDirectory(tmp_path, "run")
    run.path.mkdir()
    norms = zip((1.0, 0.5, 0.2, 0.6), (10.0, 8.0, 5.0, 2.1), strict=True)
    lines = [
        {"step": 10 * k, "gradient/full_weights_norm": g, "norm/weight_l2": w, "strength": 1.0}
        for k, (g, w) in enumerate(norms)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    gradient, size = strong.falls(run).itertuples()
    assert (gradient.quantity, gradient.steps, gradient.fallen) == ("loss_gradient", 20, True)
    assert (size.quantity, size.steps, size.fallen) == ("weights", 30, False)
    assert (gradient.share_at_the_end, size.share_at_the_end) == (pytest.approx(0.6), pytest.approx(0.21))


def test_a_norm_that_was_not_logged_is_an_error(run):
    with pytest.raises(WdlabError, match="gradient/full_weights_norm was not logged"):
        strong.falls(run)
