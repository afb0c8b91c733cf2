"""Kills at random moments, each followed by a resume; at the end every run must equal one that was never stopped.

``make test-faults``, or ``python -m tests.campaign --kills 100 --seed 0 --minutes 15``; ``test_kill.py`` is its short
form. The seed fixes who is killed, how, and when; what a process has done by then depends on the machine.

A target is a folder of runs that one launcher trains. It is killed a few times, then trained to its end and compared,
bit for bit, with the same runs as ``local`` (of a stack: as ``stacked``) makes them in one go.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PROJECT
from tests.test_train import same_ending
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name

COMMON = (
    *("train.steps=2500", "train.log_every=25", "train.eval_every=100", "model.width=16", "lr_schedule=cosine"),
    *("runtime=cpu", "runtime.threads=1"),
)
KEPT = "runtime.checkpoint_seconds=0.01"  # of a process that is to be killed
JOBS = (
    ("regularizer=pathprox", "optimizer.momentum=0.9"),
    ("optimizer=adam", "optimizer.lr=1e-3", "regularizer=pnorm", "regularizer/over_time=gradient_scale"),
    ("optimizer=adams", "optimizer.lr=1e-3", "seed=1"),
    ("regularizer=coherent", "model=mlp_factorized", "seed=2"),
)
TOGETHER = (  # what a stack can hold
    *JOBS[:1],
    ("regularizer=pathprox", "optimizer.momentum=0.9", "seed=1", "optimizer.lr=0.05"),
    ("regularizer=pnorm", "optimizer.momentum=0.9", "seed=1"),
    ("regularizer=l1", "optimizer.momentum=0.9", "seed=2"),
)
LAUNCHERS = {  # a sweep of JOBS, or, where there are no options, one of them as a run of its own; a stack of TOGETHER
    "run": None,
    "local": ("hydra/launcher=local",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "stacked": ("hydra/launcher=stacked",),
}
STAGES = ("start-up", "training", "checkpoint", "end")  # when a kill comes
SCOPES = ("process", "group")  # what it hits: the process started, or it and all that it started
LAST = 2450  # the step from which on a run is about to end
LONGEST = 300  # seconds that a command may take
AT_MOST = 4  # kills per target


@dataclass
class Target:
    """A folder of runs and the command that trains it."""

    folder: Path
    launcher: str
    jobs: tuple[tuple[str, ...], ...]
    kills: int = 0
    trouble: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        options = [*COMMON, f"paths.runs={self.folder}"]
        chosen = LAUNCHERS[self.launcher]
        if chosen is None:
            return [sys.executable, "-m", "wdlab.train", *self.jobs[0], *options]
        listed = self.folder.with_suffix(".json")
        listed.write_text(json.dumps(self.jobs))
        return [sys.executable, "-m", "wdlab.train", "-m", f"hydra.sweeper.jobs={listed}", *options, *chosen]

    @property
    def directories(self) -> list[RunDirectory]:
        return [RunDirectory(self.folder, name_of(job)) for job in self.jobs]

    @property
    def steps(self) -> list[int]:
        """Of each run's newest record."""
        return [directory.last_step for directory in self.directories]

    @property
    def finished(self) -> bool:
        return all(directory.finished for directory in self.directories)

    def start(self, *overrides: str) -> subprocess.Popen:
        log = self.folder.with_suffix(".log").open("ab")
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        return subprocess.Popen(
            [*self.command, *overrides],
            env=environment, cwd=self.folder.parent, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


NAMES: dict[tuple[str, ...], str] = {}
NAMING = threading.Lock()


def name_of(job: tuple[str, ...]) -> str:
    """The name of a job's run; composing is slow, and not for several threads at once."""
    with NAMING:
        if job not in NAMES:
            NAMES[job] = run_name(compose_config([*COMMON, *job]))
        return NAMES[job]


def kill_once(target: Target, dice: random.Random) -> str:
    """Start a target's command, kill it at a random moment, and say in a line what that was."""
    stage, scope = dice.choice(STAGES), dice.choice(SCOPES)
    logger = "offline" if dice.random() < 0.2 else "disabled"
    moment = dice.random()
    before = sum(target.steps)
    began = time.monotonic()
    process = target.start(f"logger={logger}", KEPT)
    wait_for(stage, target, process, moment)
    seconds = time.monotonic() - began
    ended = process.poll() is not None
    if not ended:
        (os.killpg if scope == "group" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    target.kills += not ended
    hit = "had ended" if ended else f"killed {scope}"
    return f"{target.launcher:7} {stage:10} {hit:14} after {seconds:5.1f} s, step {before} -> {sum(target.steps)}"


def wait_for(stage: str, target: Target, process: subprocess.Popen, moment: float) -> None:
    """Return at a moment (0 to 1) of a stage of a launch, or when it ends before."""
    if stage == "start-up":
        sleep(5 * moment, process)
        return
    before = target.steps
    limit = time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < limit and target.steps == before:
        time.sleep(0.005)  # until it trains
    if stage == "training":
        sleep(2 * moment, process)
        return
    sleep(moment, process)
    paths = [directory.path for directory in target.directories]
    while process.poll() is None and time.monotonic() < limit:
        if stage == "checkpoint" and any((path / ".checkpoint.tmp").exists() for path in paths):
            return
        if stage == "end" and any(d.last_step >= LAST and not d.finished for d in target.directories):
            sleep(0.3 * moment, process)
            return
        time.sleep(0.0005)  # a checkpoint takes longer; without it this loop takes a core from what it watches


def sleep(seconds: float, process: subprocess.Popen) -> None:
    """As long as the process lives."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.002)


def in_a_process(target: Target) -> None:
    """Run a target's command until it ends."""
    target.start("logger=disabled").wait()


def finish(target: Target, whole: Path, run: Callable[[Target], None]) -> None:
    """Train a target to its end and note every run that does not equal the one never stopped."""
    limit = time.monotonic() + LONGEST
    while not target.finished and time.monotonic() < limit:  # more than once only if a killed sweep's workers still end
        run(target)
    for directory in target.directories:
        try:
            same_ending(RunDirectory(whole, directory.name), directory)
            assert directory.status == "done", directory.status
            assert not list(directory.path.glob(".*.tmp")), "a temporary file is left"
        except Exception as error:
            target.trouble.append(f"{directory.path}: {type(error).__name__}: {error}")


def never_stopped(
    folder: Path, launcher: str, jobs: tuple[tuple[str, ...], ...], run: Callable[[Target], None]
) -> Target:
    """What the others are compared with."""
    target = Target(folder, launcher, jobs)
    run(target)
    assert target.finished, folder.with_suffix(".log").read_text()
    return target


def campaign(
    folder: Path,
    kills: int,
    seed: int,
    minutes: float,
    lanes: int = 2,
    at_most: int = AT_MOST,
    of_each: int = len(JOBS),
    run: Callable[[Target], None] = in_a_process,
) -> list[Target]:
    """Kill until there were ``kills`` or the time is up; every target begun is trained to its end.

    Args:
        folder: for everything.
        kills: in all; a process that ends before its moment is none.
        seed: of the moments and of what is killed.
        minutes: after which nobody is killed any more.
        lanes: targets at once.
        at_most: kills per target.
        of_each: how many runs each sweep has.
        run: runs the command of a target that is not to be killed.
    """
    sweep = JOBS[:of_each]
    whole = never_stopped(folder / "whole", "local", sweep, run)
    together = never_stopped(folder / "together", "stacked", TOGETHER[:of_each], run)
    until = time.monotonic() + 60 * minutes
    targets: list[Target] = []
    taking = threading.Lock()

    def over() -> bool:
        return time.monotonic() >= until or sum(target.kills for target in targets) >= kills

    def lane(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        while not over():
            with taking:
                launcher = list(LAUNCHERS)[len(targets) % len(LAUNCHERS)]
                jobs = sweep if LAUNCHERS[launcher] else (dice.choice(sweep),)
                jobs, expected = (together.jobs, together) if launcher == "stacked" else (jobs, whole)
                target = Target(folder / f"target-{len(targets)}", launcher, jobs)
                targets.append(target)
            for _ in range(dice.randint(1, at_most)):
                if not over() and not target.finished:
                    line = kill_once(target, dice)
                    print(f"{sum(t.kills for t in targets):4}  {target.folder.name:10} {line}", flush=True)
            finish(target, expected.folder, run)
            came_out = "\n".join(target.trouble) or f"equal, after {target.kills} kills"
            print(f"      {target.folder.name:10} {came_out}", flush=True)

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lane, range(lanes)))
    return targets


def summary(targets: list[Target], seed: int) -> str:
    """What came out."""
    kills, good = (sum(t.kills for t in chosen) for chosen in (targets, [t for t in targets if not t.trouble]))
    by = ", ".join(f"{name} {sum(t.kills for t in targets if t.launcher == name)}" for name in LAUNCHERS)
    compared = sum(len(t.jobs) for t in targets)
    return (
        f"seed {seed}: {kills} kills ({by}), each followed by a resume; {good} of {kills} ended bitwise equal to runs "
        f"never stopped ({compared} runs in {len(targets)} folders, {sum(len(t.trouble) for t in targets)} differ)"
    )


def main() -> None:
    """The command line; exit code 1 if a run differs, or there were fewer kills than asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15, help="no further kill after that")
    parser.add_argument("--lanes", type=int, default=2, help="how many at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wdlab-faults-") as folder:
        targets = campaign(Path(folder), arguments.kills, arguments.seed, arguments.minutes, arguments.lanes)
    print(summary(targets, arguments.seed))
    enough = sum(target.kills for target in targets) >= arguments.kills
    sys.exit(not enough or any(target.trouble for target in targets))


if __name__ == "__main__":
    main()
