"""Metrics against values worked out by hand, and what measuring must leave alone."""

import math

import pytest
import torch
from torch import nn

from tests.metrics.examples import Examples, make_step, random_images
from wdlab import regularizers
from wdlab.homogeneous import unit_path_norms
from wdlab.metrics import Metrics, cross_entropy, norms, objective, sparsity
from wdlab.models import GPT, MLP, ResNet
from wdlab.regularizers.routes import ROUTES


def tensors(*values):
    """The tensors as rows of one run."""
    return norms.as_rows([torch.tensor(v, dtype=torch.float32) for v in values])


def test_weight_norms_are_over_all_weights_together():
    weights = tensors([[3.0, 0.0]], [[0.0, -4.0], [12.0, 0.0]])
    assert norms.total_norm(norms.each_norm(weights)).item() == pytest.approx(13.0)
    assert sum(sparsity.l1_norm_and_zeros(w)[0].item() for w in weights) == pytest.approx(19.0)


@pytest.mark.parametrize("layouts", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_products_do_not_depend_on_the_layout_in_memory(layouts):
    pair = [torch.randn(4, 3, 2, 5) for _ in range(2)]
    expected = (pair[0] * pair[1]).sum().item()
    formats = torch.contiguous_format, torch.channels_last
    left, right = (t.contiguous(memory_format=formats[k]) for t, k in zip(pair, layouts, strict=True))
    assert norms.each_dot(norms.as_rows([left]), norms.as_rows([right], like=[left])).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_path_norm_and_active_units():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    second.weight.data = torch.tensor([[2.0, 0.0]])
    paths = norms.as_rows(unit_path_norms([(first, second)]))
    assert norms.path_norm(paths).item() == pytest.approx(10.0)
    assert sparsity.active_unit_share(paths).item() == 0.5


def share_of_zeros(weights):
    l1, zeros = (torch.stack(of, dim=1).double() for of in zip(*map(sparsity.l1_norm_and_zeros, weights), strict=True))
    return sparsity.share_of_zeros(l1, zeros, sum(w.numel() for w in weights)).item()


def test_zero_weights_are_those_below_the_threshold():
    assert share_of_zeros(tensors([0.0, 1e-14, -1e-14], [1e-12])) == 0.75


def test_what_is_not_finite_is_neither_zero_nor_active():
    assert math.isnan(share_of_zeros(tensors([0.0, float("nan")])))
    assert math.isnan(share_of_zeros(tensors([0.0, -float("inf")])))
    assert math.isnan(sparsity.active_unit_share(tensors([0.0, float("inf")])).item())


def test_cross_entropy_is_over_all_labels():
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    assert torch.equal(cross_entropy(logits, labels), nn.functional.cross_entropy(logits, labels))
    assert torch.equal(cross_entropy(logits.view(2, 3, 4), labels.view(2, 3)), cross_entropy(logits, labels))


def test_evaluation_is_over_the_whole_split_whatever_the_chunks(monkeypatch):
    torch.manual_seed(0)
    model, split = nn.Linear(3, 4), Examples(torch.randn(23, 3), torch.randint(4, (23,)))
    whole = objective.evaluate_split(model, split)
    expected = nn.functional.cross_entropy(model(split.inputs), split.labels).item()
    for limit, value in (
        ("MAX_EXAMPLES_PER_PASS", 5),
        ("MAX_INPUT_VALUES_PER_PASS", 10),
        ("MAX_INPUT_VALUES_PER_PASS", 2),
    ):
        monkeypatch.setattr(objective, limit, value)
        parts = objective.evaluate_split(model, split)
        assert whole[0].item() == pytest.approx(expected, rel=1e-6) == parts[0].item()
        assert whole[1] == parts[1] == (model(split.inputs).argmax(1) == split.labels).double().mean()


def test_evaluation_of_text_is_over_all_characters():
    torch.manual_seed(0)
    model, split = nn.Embedding(5, 5), Examples(torch.randint(5, (7, 3)), torch.randint(5, (7, 3)))
    loss, accuracy = objective.evaluate_split(model, split)
    logits = model(split.inputs)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), split.labels.flatten()).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert accuracy.item() == pytest.approx((logits.argmax(2) == split.labels).double().mean().item())


def test_evaluation_is_in_evaluation_mode_and_leaves_every_mode_alone():
    model, split = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), Examples(torch.eye(4), torch.arange(4))
    model.train()
    model[1].eval()
    assert objective.evaluate_split(model, split)[1] == 1.0
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_blew_up_has_no_accuracy(value):
    model = MLP((1, 4, 4), classes=3, width=8, depth=2)
    model.layers[-1].bias.data.fill_(value)
    loss, accuracy = objective.evaluate_split(model, random_images().train)
    assert not loss.isfinite() and accuracy.isnan()


def test_evaluation_runs_under_autocast_where_asked():
    seen = []
    model, split = nn.Linear(3, 2), Examples(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    model.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    objective.evaluate_split(model, split, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert seen == [torch.bfloat16]


METHODS = {
    "none": (regularizers.Regularizer, {}),
    "l2": (regularizers.L2, {}),
    "l1": (regularizers.L1, {}),
    "lp": (regularizers.Lp, {"p": 0.5}),
    "decoupled": (regularizers.DecoupledDecay, {}),
    "scheduled": (regularizers.ScheduledDecay, {}),
    "pnorm": (regularizers.PNormDecay, {"p": 0.5}),
    "pnorm_prox": (regularizers.PNormProx, {"p": 1.5}),
    "elastic_pnorm": (regularizers.PNormDecay, {"p": 0.5, "ridge": 0.1}),
    "huber": (regularizers.HuberDecay, {}),
    "cpr": (regularizers.ConstrainedRegularization, {"warm_start": 1}),
    "pathprox": (regularizers.PathProx, {}),
    "coherent": (regularizers.Coherent, {"coherence": "norm_ratio"}),
    "early": (regularizers.L2, {"over_time": regularizers.Early(steps=1)}),
}
WITH_OBJECTIVE = {"none", "l2", "l1", "lp", "pnorm_prox", "huber", "pathprox"}
STEP = {
    *("gradient/loss_norm", "gradient/penalty_norm", "gradient/coherence", "update/relative"),
    *("scale_invariant/gradient_times_weight", "scale_invariant/angular_update", "scale_invariant/effective_lr"),
}
STATE = {"norm/weight_l2", "norm/weight_l1", "norm/path", "sparsity/weights", "sparsity/active_units"}
SPLITS = {f"{split}/{metric}" for split in ("train", "val", "test") for metric in ("loss", "accuracy")}
OBJECTIVES = {"objective/weight_decay", "objective/path_norm", "objective/total"}
SHARPNESS = {
    *(
        "sharpness/top_eigenvalue",
        "sharpness/trace",
        "sharpness/trace_error",
        "scale_invariant/sharpness",
        "scale_invariant/trace",
        "scale_invariant/trace_error",
    ),
    *("lipschitz/lower", "lipschitz/upper"),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_metric_of_every_method_is_finite(name):
    torch.manual_seed(0)
    method, options = METHODS[name]
    data, model = random_images(), MLP((1, 4, 4), 3, width=6, depth=4)
    with torch.no_grad():  # slopes of the p-norm at zero, and close to it
        model.layers[1].weight[:, :3] = 0.0
        model.layers[1].weight[:, 3:6] = 1e-30
    regularizer = method.for_model(model, strength=0.0 if name == "none" else 1e-3, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    metrics = Metrics(model, data, regularizer, sharpness_examples=8)
    assert metrics.measure(False).keys() == STATE
    with regularizer.attach(optimizer):
        for step in range(3):
            make_step(metrics, optimizer, *data.train.examples(slice(0, 8)))
            values = metrics.measure(whole_splits=step == 1, sharpness=step == 2)
            own = {"coherent": {"gradient/gate"}, "cpr": {"constraint/active", "constraint/multiplier"}}.get(
                name, set()
            )
            fuller = [set(), SPLITS | (OBJECTIVES if name in WITH_OBJECTIVE else set()), SHARPNESS][step]
            assert values.keys() == STEP | STATE | own | fuller
            assert {key for key, value in values.items() if not math.isfinite(value)} == set()


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (regularizers.L2, {"over_time": regularizers.OverTime()}, True),
        (regularizers.L2, {"over_time": [regularizers.OverTime(), regularizers.Delayed(steps=0)]}, False),
        (regularizers.PathProx, {"over_time": regularizers.WarmUp(steps=5)}, False),
        *((regularizers.L1, {"route": route}, route not in ("second", "decoupled")) for route in ROUTES),
        (type("Own", (regularizers.Regularizer,), {}), {}, False),
    ],
)
def test_only_constant_strengths_in_an_objective_give_one(method, options, expected):
    assert method.for_model(MLP((1, 4, 4), 3, width=6, depth=4), 1e-3, **options).has_objective == expected


def test_a_decayed_tensor_may_be_larger_than_every_weight():
    large = nn.Sequential(nn.Conv2d(1, 300, 1, bias=False), nn.LayerNorm([300, 4, 4]), nn.AvgPool2d(4), nn.Flatten())
    large.append(nn.Linear(300, 3))
    data, regularizer = random_images(), regularizers.L2.for_model(large, 1.0, scope="all")
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    metrics = Metrics(large, data, regularizer)
    square = sum(p.detach().square().sum().item() for p in large.parameters())
    make_step(metrics, optimizer, *data.train.examples(slice(0, 12)))
    assert metrics.measure(False)["gradient/penalty_norm"] == pytest.approx(math.sqrt(square), rel=1e-5)


def test_the_norm_at_a_log_point_is_that_of_the_new_weights():
    torch.manual_seed(0)
    data, model = random_images(), MLP((1, 4, 4), 3, width=4, depth=2)
    regularizer = regularizers.L2.for_model(model, strength=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    metrics = Metrics(model, data, regularizer)
    with regularizer.attach(optimizer):
        make_step(metrics, optimizer, *data.train.examples(slice(None)))
    after_a_step, again = metrics.measure(False), metrics.measure(False)
    assert after_a_step["norm/weight_l2"] == again["norm/weight_l2"]
    assert again["norm/weight_l2"] == pytest.approx(
        norms.total_norm(norms.each_norm(norms.as_rows(metrics.weights))).item()
    )


def as_it_is(model):
    state = [*model.state_dict().values(), torch.get_rng_state(), *(p.grad for p in model.parameters())]
    return [t.clone() for t in state], [m.training for m in model.modules()]


@pytest.mark.parametrize("kind", ["resnet", "dropout", "gpt"])
def test_measuring_leaves_everything_alone(kind):
    torch.manual_seed(0)
    data = random_images((3, 8, 8), count=10)
    if kind == "resnet":
        model = ResNet((3, 8, 8), 3, width=2, depth=8)
    elif kind == "dropout":
        layers = nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 3)
        model = nn.Sequential(*layers)
    else:
        model = GPT((6,), 5, width=8, depth=1, heads=2, dropout=0.5)
        tokens = torch.randint(5, (8, 7))
        data = type(data)(**dict.fromkeys(("train", "val", "test"), Examples(tokens[:, :-1], tokens[:, 1:])))
    model.train()
    list(model.modules())[-1].eval()
    metrics = Metrics(model, data, regularizers.L2.for_model(model, strength=0.1), sharpness_examples=4)
    cross_entropy(model(data.train.examples(slice(0, 4))[0]), data.train.examples(slice(0, 4))[1]).backward()
    before, modes = as_it_is(model)
    first = metrics.measure(True, sharpness=True)
    after, modes_after = as_it_is(model)
    assert all(map(torch.equal, before, after)) and modes == modes_after
    assert first == metrics.measure(True, sharpness=True)
    assert all(map(math.isfinite, first.values()))
    assert ("lipschitz/lower" in first) == (kind != "gpt")
