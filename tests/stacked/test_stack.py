"""A stack of runs against each of them by itself: every record at every step, weights, optimizer states, resume."""

import itertools
import json

import pytest
import torch

from wdlab import loop
from wdlab.build import build_experiment
from wdlab.engine.one_run import OneRun
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import run_name
from wdlab.records.recorder import Recorder
from wdlab.records.wandb_mirror import Mirror
from wdlab.regularizers.routes import OF_ADAM
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.stacked.program import Stack, StackedRun

STEPS = 6
ATOL = 5e-5  # Adam divides by roots of squares: where gradients are next to nothing, rounding becomes a step
COMMON = ("train.steps=6", "train.log_every=1", "train.eval_every=3", "model.width=12", "train.batch_size=32")
POINTS = (  # what may differ within a stack
    ("seed=0", "regularizer.strength=1e-2", "optimizer.lr=0.05"),
    ("seed=1", "regularizer.strength=0.0", "optimizer.lr=0.02"),
    ("seed=1", "regularizer.strength=0.5", "optimizer.lr=0.05"),
    ("seed=2", "regularizer.strength=1e-3", "optimizer.lr=0.0"),
)
MOVING = (  # for factors relative to the peak of the learning rate: they refuse a peak of 0
    *POINTS[:2],
    ("seed=1", "regularizer.strength=0.1", "optimizer.lr=0.05"),
    ("seed=2", "regularizer.strength=1e-3", "optimizer.lr=0.01"),
)
PLAIN = ("regularizer=l2",)
EARLY = ("regularizer/over_time=early", "++regularizer.over_time.epochs=0.1")
DELAYED = ("regularizer/over_time=delayed", "++regularizer.over_time.epochs=0.1")
COSINE = ("lr_schedule=cosine", "lr_schedule.warmup_epochs=0.05")
CORRECTED = ("regularizer/over_time=corrected", "model.norm=batch", *COSINE)
CORRECTED_ALL = ("regularizer/over_time=corrected", "regularizer.over_time.scope=all", *COSINE)
INDEPENDENT = ("regularizer/over_time=independent",)
GATES = {"running_mean": 0.4, "total_gradient": 0.999, "norm_ratio": 20}  # open in some steps and runs, not in all
ROUTES = [(name, route) for name in ("l2", "l1", "lp") for route in OF_ADAM]
BIG_EPS = ("optimizer=adam", "optimizer.eps=0.1")  # so that no weight without a gradient takes a step of lr s w / eps
SETTINGS = {
    "l2": PLAIN,
    "l2 decoupled": ("regularizer=l2", "regularizer.route=decoupled", "regularizer.scope=all"),
    "l1": ("regularizer=l1", "optimizer.momentum=0.9"),
    "lp": ("regularizer=lp", "regularizer.p=0.5"),
    "decoupled": ("regularizer=decoupled", "regularizer.scope=all"),
    "cautious": ("regularizer=cautious", "optimizer.momentum=0.9"),
    "cautious, adam": ("regularizer=cautious", "optimizer=adam"),
    "scheduled": ("regularizer=scheduled", "optimizer.momentum=0.5"),
    "scheduled, cautious": ("regularizer=scheduled", "regularizer.cautious=true", *BIG_EPS),
    "pnorm cautious": ("regularizer=pnorm", "regularizer.cautious=true"),
    "pnorm late, cautious": ("regularizer=pnorm", "regularizer.late=true", "regularizer.cautious=true"),
    "soft threshold, cautious": ("regularizer=pnorm_prox", "regularizer.cautious=true", "optimizer.momentum=0.9"),
    "pruned, cautious": ("regularizer=magnitude_pruning", "regularizer.cautious=true", "regularizer.zeros=0.8"),
    **{f"pnorm {p}": ("regularizer=pnorm", f"regularizer.p={p}") for p in (0.5, 0.8, 1, 1.5, 2, 3)},
    "pnorm late": ("regularizer=pnorm", "regularizer.late=true"),
    "soft threshold": ("regularizer=pnorm_prox", "regularizer.p=1"),
    "three halves": ("regularizer=pnorm_prox", "regularizer.p=1.5"),
    "pruned": ("regularizer=magnitude_pruning", "regularizer.zeros=0.8", "optimizer=adam"),
    "elastic": ("regularizer=elastic_pnorm", "regularizer.ridge=0.3"),
    "huber": ("regularizer=huber", "regularizer.delta=0.05"),
    "constrained": ("regularizer=cpr",),
    "pathprox": ("regularizer=pathprox",),
    "pathprox with biases": ("regularizer=pathprox", "regularizer.regularize_bias=true"),
    "pathprox, five layers": ("regularizer=pathprox", "model.depth=5"),
    "factorized": ("regularizer=pathprox", "model=mlp_factorized", "regularizer.balance=false"),
    "early": ("regularizer=pathprox", "regularizer/over_time=early", "++regularizer.over_time.epochs=0.1"),
    "delayed": ("regularizer=pnorm", "regularizer/over_time=delayed", "++regularizer.over_time.epochs=0.1"),
    "warm-up": ("regularizer=l1", "regularizer/over_time=warmup", "++regularizer.over_time.epochs=0.1"),
    "batch norm": (*PLAIN, "model.norm=batch", "optimizer.momentum=0.9"),
    "batch norm, decayed": ("regularizer=l1", "regularizer.scope=all", "model.norm=batch", "train.clip_norm=1"),
    "batch norm, adam": ("regularizer=decoupled", "model.norm=batch", *BIG_EPS),
    "nesterov": (*PLAIN, "optimizer.momentum=0.9", "optimizer.nesterov=true"),
    "dampening": (*PLAIN, "optimizer.momentum=0.9", "+optimizer.dampening=0.3"),
    "cosine": (*PLAIN, "lr_schedule=cosine", "lr_schedule.warmup_epochs=0.05"),
    "clipped": (*PLAIN, "train.clip_norm=0.3"),
    "adam": (*PLAIN, "optimizer=adam"),
    "adamw": ("regularizer=pnorm", "optimizer=adamw"),
    "amsgrad": (*PLAIN, "optimizer=amsgrad"),
    "route, amsgrad": ("regularizer=l2", "regularizer.route=second", *BIG_EPS, "+optimizer.amsgrad=true"),
    "gradient of the whole split": (*PLAIN, "train.full_gradient_every=3"),
    "padam": (*PLAIN, "optimizer=padam", "optimizer.weight_decay=0.1"),
    "sgds": (*PLAIN, "optimizer=sgds", "optimizer.weight_decay=0.1"),
    **{
        f"gate by {name}": (
            "regularizer=coherent",
            f"regularizer.coherence={name}",
            f"regularizer.threshold={threshold}",
        )
        for name, threshold in GATES.items()
    },
    "projection": ("regularizer=coherent", "regularizer.coherence=project", "regularizer.strength=0.3"),
    "gate over l1 of all": ("regularizer=coherent", "regularizer.penalty=l1", "regularizer.scope=all"),
    "gate over decoupled l2": ("regularizer=coherent", "regularizer.route=decoupled", "optimizer=adam"),
    "gate over p-norm": ("regularizer=pnorm", "regularizer/over_time=coherent"),
    "gate over pathprox": ("regularizer=pathprox", "regularizer/over_time=coherent"),
    **{
        f"gate by {name} over {method}": (
            f"regularizer={method}",
            "regularizer/over_time=coherent",
            f"regularizer.over_time.coherence={name}",
            f"regularizer.over_time.threshold={threshold}",
        )
        for method in ("pathprox", "pnorm", "pnorm_prox")
        for name, threshold in (("total_gradient", 0.9), ("norm_ratio", 0.1))
    },
    "gate over a route": ("regularizer=coherent", "regularizer.route=first", *BIG_EPS),
    "scheduled, adam": ("regularizer=scheduled", "optimizer=adam"),
    "scheduled, adamw": ("regularizer=scheduled", "regularizer.scope=all", "optimizer=adamw"),
    "scale over p-norm": ("regularizer=pnorm", "regularizer.p=3", "regularizer/over_time=gradient_scale", *BIG_EPS),
    "scale over pathprox": ("regularizer=pathprox", "regularizer/over_time=gradient_scale", *BIG_EPS),
    "adams": ("regularizer=none", "optimizer=adams"),
    "adams with l2": (*PLAIN, "optimizer=adams", "optimizer.weight_decay=0.1"),
    "adams without decay": (*PLAIN, "optimizer=adams", "optimizer.weight_decay=0"),
    **{f"{name} {route}": (f"regularizer={name}", f"regularizer.route={route}", *BIG_EPS) for name, route in ROUTES},
    # with p = 0.8 the weights come so close to zero that little is left of their angles but rounding
    "lp separate": ("regularizer=lp", "regularizer.route=separate", "regularizer.p=1.5", *BIG_EPS),
    "route, adamw": ("regularizer=l2", "regularizer.route=first", "regularizer.scope=all", *BIG_EPS, "optimizer=adamw"),
    "early route": ("regularizer=l2", "regularizer.route=separate", *EARLY, *BIG_EPS),
    "gate over separate": ("regularizer=coherent", "regularizer.route=separate", "regularizer.threshold=0.4", *BIG_EPS),
    "corrected": ("regularizer=decoupled", *CORRECTED),
    "corrected, all": ("regularizer=l2", *CORRECTED_ALL),
    "corrected to a given peak": (
        "regularizer=pnorm",
        "regularizer.p=1.5",
        *CORRECTED,
        "regularizer.over_time.peak_lr=0.1",
    ),
    "cautious and corrected": ("regularizer=pnorm", "regularizer.cautious=true", *CORRECTED_ALL),
    "independent": ("regularizer=decoupled", *INDEPENDENT, *COSINE),
    "independent, pathprox": ("regularizer=pathprox", *INDEPENDENT),
    "delayed route": ("regularizer=l2", "regularizer.route=first", *DELAYED, *BIG_EPS),
}


def configs(compose, *overrides, points=POINTS):
    return [compose(*COMMON, *overrides, *point) for point in points]


def members(of, folder, start=False):
    found = []
    for config in of:
        run = RunDirectory(folder, run_name(config))
        run.create()
        state = checkpoint.load(run) if start else None
        recorder = Recorder(run.metrics, state["records_bytes"] if state else 0, Mirror())
        found.append(StackedRun(build_experiment(config), run, recorder, start=state))
    return found


def fit_stacked(of, folder, kinds=None, **options):
    runs_of_it = members(of, folder, **options)
    kinds = kinds or ["the same"] * len(runs_of_it)
    assert [why_not_stacked(c, m.experiment) for c, m in zip(of, runs_of_it, strict=True)] == [None] * len(of)
    for member, key in zip(runs_of_it, kinds, strict=True):
        member.method_key = key
    outcome = loop.fit(Stack(runs_of_it, of[0]["train"]), of[0]["train"], checkpoint_seconds=float("inf"))
    for member in runs_of_it:
        member.outcome = member.outcome or outcome
        member.recorder.close()
    return runs_of_it


def fit_one_by_one(of, folder, until=None, **options):
    """Train one run after another, each to an interrupt after so many updates if ``until`` is given."""
    done = members(of, folder, **options)
    for config, member in zip(of, done, strict=True):
        program = OneRun(member.experiment, config["train"], member.run, member.recorder, member.start)
        asked = itertools.count(1)
        stop = (lambda asked=asked: next(asked) >= until) if until else (lambda: False)
        member.outcome = loop.fit(program, config["train"], float("inf"), stop)
        member.recorder.close()
    return done


def rows(member):
    return [json.loads(line) for line in member.run.metrics.read_text().splitlines()]


def state(member):
    """What a checkpoint holds of the numbers."""
    saved = checkpoint.load(member.run)
    del saved["records_bytes"], saved["rng"]
    return saved


def nearly(value, rel=2e-4, abs=2e-6):
    return None if value is None else pytest.approx(value, rel=rel, abs=abs)


def nearly_equal(row):
    """A log line up to rounding. Where decay makes most of an update, little is left of its angle but rounding."""
    rel = {"scale_invariant/angular_update": 1e-3, "step": 0, "epoch": 0, "lr": 0}
    return {key: nearly(value, rel.get(key, 2e-4), 0 if rel.get(key) == 0 else 2e-6) for key, value in row.items()}


def to_the_last_digits(row):
    """A log line up to the last digits of metrics: the angle's arctangent has two forms, by the place in a vector."""
    return {key: nearly(value, rel=1e-13, abs=0) for key, value in row.items()}


@pytest.mark.parametrize("key", ["label_smoothing", "average_decay"])
def test_smoothed_labels_and_averages_are_not_stacked(compose, key):
    config = compose(*COMMON, f"train.{key}=0.1")
    assert why_not_stacked(config, build_experiment(config)) == f"train.{key} is for runs that are trained alone"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stack_records_what_its_runs_do_by_themselves(name, compose, tmp_path):
    relative = any("=corrected" in word or "=independent" in word for word in SETTINGS[name])
    of = configs(compose, *SETTINGS[name], points=MOVING if relative else POINTS)
    together, apart = fit_stacked(of, tmp_path / "stack"), fit_one_by_one(of, tmp_path / "single")
    for ours, theirs in zip(together, apart, strict=True):
        assert ours.outcome == theirs.outcome == "done"
        assert len(rows(ours)) == STEPS + 1
        for row, expected in zip(rows(ours), rows(theirs), strict=True):
            assert row.keys() == expected.keys()
            assert row == nearly_equal(expected)
        assert_nearly_equal(*(state(member) for member in (ours, theirs)))


def assert_nearly_equal(ours, theirs):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_nearly_equal(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        for a, b in itertools.zip_longest(ours, theirs):
            assert_nearly_equal(a, b)
    elif isinstance(theirs, torch.Tensor):
        assert ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=ATOL)
    else:
        assert ours == (nearly(theirs) if isinstance(theirs, float) else theirs)
