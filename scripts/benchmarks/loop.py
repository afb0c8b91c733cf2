"""The cost of the loop, its records and its metrics, and the speed of a run from end to end."""

import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from torchvision.transforms import RandomCrop, RandomHorizontalFlip

from benchmarks import loaders
from benchmarks.setups import Setup, bare_step, plain_step
from benchmarks.timing import RATIO, SPEED_UP, Case, Options, Page, Part, part
from wdlab import loop
from wdlab.data import Batches, Data
from wdlab.engine.experiment import Experiment
from wdlab.engine.one_run import BatchGradient, OneRun
from wdlab.metrics import Metrics
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.records.wandb_mirror import Mirror
from wdlab.settings import read

LOOP_TARGET = 1.03
WARM = 10  # untimed steps before the clock starts
LOG_EVERY = 10
POINTS = 10  # log points of one measurement
NEVER = 10**9  # a number of steps that no run reaches
MOMENTS = ("before_step", "after_step", "measure(False)")  # calls of Metrics at a log point
L2_STRENGTH = 1e-4
END_TO_END_REPEATS = 10
SLOW_REPEATS = 5
OUTSIDE = (
    "Where a run is timed, the evaluation of the whole splits at its beginning and the checkpoint at its end are not "
    'in it; what an evaluation takes stands under "Metrics now and then".'
)


def table(options: Options) -> Page:
    """Return the times of the loop, of its metrics and of whole runs, on random images and with temporary records."""
    overhead, line = _overhead(options), _metrics(options)
    overhead.remarks += _shortfall(overhead, line)
    parts = [overhead, line, _seldom(options), *_end_to_end(options)]
    return Page("The cost of the loop, its records and its metrics", parts, [OUTSIDE])


def _shortfall(overhead: Part, line: Part) -> list[str]:
    """Return a remark for each case of ``overhead`` that misses its target, on what takes the time."""
    missed = [row.case for row in overhead.rows if row.met == "no"]
    of_a_step = {row.case: row.value for row in line.rows}
    parts = ", ".join(f"{moment} {of_a_step[moment]:.2f}" for moment in MOMENTS)
    all_three = of_a_step["all three"]
    return [
        f"`{case}` misses its target: the moments of a log line take {all_three:.2f} of a step ({parts}), a tenth of "
        f"which is {all_three / LOG_EVERY:.3f}. before_step goes once through weights and gradients and writes "
        "the weights down, after_step goes through old and new weights: their time is the way to memory, where "
        "that of a training step is products. The rest is the loop itself (`wdlab, not logging`)."
        for case in missed
    ]


class Fit:
    """A run whose steps are timed in ``loop.fit``, or in a bare loop of the same steps.

    Args:
        setup: the parts of the run.
        data: splits of random images.
        steps: number of timed steps.
        folder: folder for the run's records.
        options: the options of the command line.
    """

    def __init__(self, setup: Setup, data: Data, steps: int, folder: Path, options: Options) -> None:
        self._setup, self._data, self._steps, self._options = setup, data, steps, options
        self._settings = read(setup.config).train
        self._run = RunDirectory(folder, setup.config["model"]["name"])
        self._run.create()
        self._start = {name: value.clone() for name, value in setup.model.state_dict().items()}

    def fit(self, log_every: int = LOG_EVERY) -> float:
        """Return the mean seconds of a step in ``loop.fit``, records and metrics included."""
        setup, clock = self._begin(), _Clock(self._steps, self._options)
        parts = setup.model, self._data, setup.optimizer, setup.regularizer, setup.lr_factor, setup.machine
        experiment = Experiment(*parts, seed=0)
        recorder = Recorder(self._run.metrics, 0, Mirror())
        settings = replace(self._settings, log_every=log_every)
        outcome = loop.fit(OneRun(experiment, settings, self._run, recorder), settings, float("inf"), clock)
        recorder.close()
        if outcome != "interrupted":  # the clock ends the run by a stop request
            raise RuntimeError(f"the run that was timed ended as {outcome}")
        gc.collect()  # here, since the collector is off while cases are timed
        return clock.seconds

    def bare(self) -> float:
        """Return the mean seconds of a step in a bare loop with the same network, optimizer, batches and precision."""
        setup, clock = self._begin(), _Clock(self._steps, self._options)
        batches = Batches(self._data.train, self._settings.batch_size, seed=0)
        step = plain_step(setup.model, setup.optimizer, lambda: None)
        setup.model.train()
        for k in itertools.count():
            step(*batches(k))
            if clock():
                return clock.seconds

    def _begin(self) -> Setup:
        self._setup.switches()
        self._setup.model.load_state_dict(self._start)
        return self._setup


class _Clock:
    """A timer to be called after every step: it starts after ``WARM`` steps, and returns True ``steps`` steps later."""

    def __init__(self, steps: int, options: Options) -> None:
        self._steps, self._options, self._calls, self._started = steps, options, 0, 0.0
        self.seconds = float("nan")

    def __call__(self) -> bool:
        self._calls += 1
        if self._calls == WARM:
            self._options.synchronize()
            self._started = time.perf_counter()
        if self._calls < WARM + self._steps:
            return False
        self._options.synchronize()
        self.seconds = (time.perf_counter() - self._started) / self._steps
        return True


def _settings(batch_size: int) -> tuple[str, ...]:
    return (
        f"train.batch_size={batch_size}",
        f"train.steps={NEVER}",
        f"train.eval_every={NEVER}",
    )


def _mlp(options: Options) -> tuple[str, ...]:
    network = ("dataset=mnist", "model=mlp", "model.depth=6", f"model.width={options.width}")
    return (*network, *_settings(options.sized(200, 20)))


def _name(options: Options) -> str:
    return f"ReLU MLP 784-{'-'.join([str(options.width)] * 5)}-10, batches of {options.sized(200, 20)}, SGD, fp32"


def _overhead(options: Options) -> Part:
    setup, steps = Setup(options, *_mlp(options)), options.sized(100, 20)
    data = setup.data(options.sized(10_000, 100), 10)
    with tempfile.TemporaryDirectory() as folder:
        timed = Fit(setup, data, steps, Path(folder), options)
        base = Case("bare loop", timed.bare, timed=True)
        ours = [
            Case(f"wdlab, logging every {LOG_EVERY} steps", timed.fit, LOOP_TARGET, timed=True),
            Case("wdlab, not logging", partial(timed.fit, NEVER), timed=True),
        ]
        problem = (
            f"a step in the middle of a run, of {steps} steps on end; {_name(options)}. Both with the same network, "
            "optimizer, batches in memory and precision; wdlab with its recorder and the metrics of a log line"
        )
        return part("The loop", problem, base, ours, options, RATIO, (1, "steps"))


# -- metrics


class _LogPoint:
    """A run whose log points are timed, with an L2 penalty, so that the penalty's metrics are measured too."""

    def __init__(self, options: Options, train: int, others: int) -> None:
        self._setup = Setup(options, *_mlp(options), "regularizer=l2", f"regularizer.strength={L2_STRENGTH}")
        self._options, data = options, self._setup.data(train, others)
        self._setup.regularizer.attach(self._setup.optimizer)
        machine = self._setup.machine
        self.examples = options.sized(1000, 20)
        how = {"autocast": machine.autocast, "sharpness_examples": self.examples}
        self.metrics = Metrics(self._setup.model, data, self._setup.regularizer, **how)
        self._update = BatchGradient(machine.training_form(self._setup.model), self._setup.optimizer, machine)
        self._batches = Batches(data.train, self._setup.config["train"]["batch_size"], 0)
        self._steps = itertools.count()

    def step(self) -> None:
        """Take a step that is not logged."""
        self._setup.switches()
        self._update.backward(*self._batches(next(self._steps)))
        self._setup.optimizer.step()

    def seconds(self, *moments: str) -> float:
        """Return the mean seconds that the given ``moments`` (see ``MOMENTS``) of a log point take together."""
        self._setup.switches()
        total = 0.0
        for _ in range(POINTS):
            self._update.backward(*self._batches(next(self._steps)))
            spent = [self._timed(self.metrics.before_step)]
            self._setup.optimizer.step()
            spent += [self._timed(self.metrics.after_step), self._timed(partial(self.metrics.measure, False))]
            total += sum(s for moment, s in zip(MOMENTS, spent, strict=True) if moment in moments)
        return total / POINTS

    def measure(self, whole_splits: bool, sharpness: bool) -> None:
        """Call ``Metrics.measure`` on the network in its current state."""
        self._setup.switches()
        self.metrics.measure(whole_splits, sharpness)

    def _timed(self, run: Callable[[], object]) -> float:
        self._options.synchronize()
        start = time.perf_counter()
        run()
        self._options.synchronize()
        return time.perf_counter() - start


def _metrics(options: Options) -> Part:
    point = _LogPoint(options, options.sized(10_000, 100), 10)
    cases = [Case(moment, partial(point.seconds, moment), timed=True) for moment in MOMENTS]
    note = f"with a log line every {LOG_EVERY} steps, this over {LOG_EVERY} is added to a step"
    cases.append(Case("all three", partial(point.seconds, *MOMENTS), note=note, timed=True))
    problem = f"what a log line takes, in a run with an L2 penalty; {_name(options)}"
    return part("Metrics of every log line", problem, Case("training step", point.step), cases, options, RATIO)


def _seldom(options: Options) -> Part:
    train, others = options.sized((55_000, 7_500), (100, 20))
    point = _LogPoint(options, train, others)
    cases = [
        Case("measure(True)", partial(point.measure, True, False), note=f"{train + 2 * others} images evaluated"),
        Case(
            "measure(False, True)",
            partial(point.measure, False, True),
            note=f"sharpness of {point.examples} examples, Lipschitz bounds",
        ),
    ]
    problem = f"what the fuller log lines take, train.eval_every and train.sharpness_every; {_name(options)}"
    options = options.at_most(SLOW_REPEATS)
    return part("Metrics now and then", problem, Case("training step", point.step), cases, options, RATIO)


# -- from end to end


def _end_to_end(options: Options) -> list[Part]:
    """Return the times of a step of a run, against a plain loop over torchvision's transforms and DataLoader."""
    resnet = ("dataset=cifar10", "model=resnet8", f"model.width={options.sized(16, 2)}")
    resnet = (*resnet, *_settings(options.sized(128, 20)))
    name = (
        f"ResNet-8 of width {options.sized(16, 2)}, batches of {options.sized(128, 20)} with crop and flip, SGD, fp32"
    )
    return [
        _against_a_plain_loop("MLP on images as MNIST", _name(options), _mlp(options), 50, options),
        _against_a_plain_loop("ResNet-8 on images as CIFAR-10", name, resnet, 20, options),
    ]


def _against_a_plain_loop(
    title: str,
    name: str,
    network: tuple[str, ...],
    steps: int,
    options: Options,
) -> Part:
    steps, count = options.sized(steps, 10), options.sized(10_000, 400)
    setup = Setup(options, *network)
    plain = _Plain(options, network, setup.config, count, steps)
    base = Case("PyTorch, torchvision + DataLoader, 2 workers", plain, timed=True)
    with tempfile.TemporaryDirectory() as folder:
        data = setup.data(count, 10)
        timed = Fit(setup, data, steps, Path(folder), options)
        ours = Case(f"wdlab, logging every {LOG_EVERY} steps", timed.fit, timed=True)
        problem = f"a step in the middle of a run, its batch included, of {steps} steps on end; {name}"
        options = options.at_most(END_TO_END_REPEATS)
        return part(f"From end to end: {title}", problem, base, [ours], options, SPEED_UP, (1, "steps"))


class _Plain:
    """A plain loop over a DataLoader. A call returns the mean seconds of a step, after ``WARM`` untimed steps."""

    def __init__(self, options: Options, network: tuple[str, ...], config: DictConfig, count: int, steps: int) -> None:
        dataset, batch_size = config["dataset"], config["train"]["batch_size"]
        varied = (RandomCrop(32, padding=4), RandomHorizontalFlip()) if dataset["augment"] else ()
        examples = loaders.random_images(tuple(dataset["shape"]), count)
        mean, std = list(dataset["mean"]), list(dataset["std"])
        loader = loaders.torchvision_loader(*examples, mean, std, batch_size, *varied)
        self._stream = loaders.endless(loader, options.device)
        self._step, model = bare_step(options, *network)
        model.train()
        self._steps, self._options = steps, options

    def __call__(self) -> float:
        clock = _Clock(self._steps, self._options)
        self._step(*next(self._stream))
        while not clock():
            self._step(*next(self._stream))
        time.sleep(loaders.AHEAD * clock.seconds)  # until the workers are idle, see loaders.Steady
        return clock.seconds
