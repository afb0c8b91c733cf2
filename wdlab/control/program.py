"""A run in an environment as a program that ``wdlab.loop`` drives: deep Q-learning by stable-baselines3's DQN.

The network, the optimizer and the method (regularizer) are those that the config describes. DQN steps in the
environment, keeps the steps, computes the loss and calls the optimizer, to which the method is attached. An update is
one step of the optimizer.
"""

import copy
import math
from typing import Any, Self

import torch

from wdlab.engine.experiment import Experiment
from wdlab.engine.observer import is_due
from wdlab.metrics import Metrics, equilibrium
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.schedules import Clock
from wdlab.settings import TrainSettings

UPDATES_PER_EPOCH = 1000  # an environment has no epochs; settings in epochs count in these
EVALUATION_SEED = 10**6  # of the first states of an evaluation, plus the run's seed


class ControlRun:
    """One run in an environment as a ``wdlab.loop.Program``. It is resumed only as a whole: from its beginning.

    Args:
        experiment: the objects that the run trains with; ``data`` is a ``wdlab.data.Environment``.
        settings: the settings of ``train``. ``batch_size`` is the number of steps in the loss of an update.
        run: the directory of the run.
        recorder: the recorder of the log lines.
        start: the content of the run's checkpoint, which only a run that has made all its updates has; else None.

    Attributes:
        name: the name of the run.
        first: 0, or the number of all updates.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainSettings,
        run: RunDirectory,
        recorder: Recorder,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.first = run.name, start["step"] if start else 0
        self._experiment, self._settings, self._run, self._recorder = experiment, settings, run, recorder
        self._optimizer, self._config = experiment.optimizer, experiment.data.config
        self._base_lrs = [group["lr"] for group in self._optimizer.param_groups]
        self._clock = experiment.regularizer.clock = Clock(settings.steps, UPDATES_PER_EPOCH, experiment.lr_factor)
        self._metrics = Metrics(experiment.model, experiment.data, experiment.regularizer)
        self._observes, self._is_finite = False, True

    @property
    def last(self) -> dict[str, Any]:
        """The newest log line; {} if there is none."""
        return self._recorder.last

    def __enter__(self) -> Self:
        # before the method's hooks, so that the gradient is that of the loss alone
        self._handles = [self._optimizer.register_step_pre_hook(self._before_step)]
        self._handles.append(self._experiment.regularizer.attach(self._optimizer))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def begin(self) -> bool:
        """Make the first steps in the environment, by random actions, and write the log line of step 0."""
        if self.first == 0:
            self._set_lr(0)
            self._make_algorithm()
            self._collect(self._config["learning_starts"])
            self._record(0)
        return True

    def _make_algorithm(self) -> None:
        """Make DQN with the network and the optimizer of the experiment, and the environments to evaluate in."""
        from stable_baselines3 import DQN
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.utils import get_parameters_by_name

        config, settings, experiment = self._config, self._settings, self._experiment
        dqn = self._dqn = DQN(
            "MlpPolicy",
            config["environment"],
            learning_rate=self._lr,
            buffer_size=config["buffer_size"],
            learning_starts=config["learning_starts"],
            batch_size=settings.batch_size,
            gamma=config["gamma"],
            train_freq=config["steps_per_update"],
            gradient_steps=1,
            target_update_interval=config["target_update_interval"],
            exploration_fraction=config["exploration_fraction"],
            exploration_final_eps=config["exploration_final_eps"],
            max_grad_norm=math.inf if settings.clip_norm is None else settings.clip_norm,
            policy_kwargs={"net_arch": []},
            seed=experiment.seed,
            device=experiment.machine.device,
        )
        dqn.q_net.q_net, dqn.q_net_target.q_net = experiment.model, copy.deepcopy(experiment.model)
        dqn.policy.optimizer = self._optimizer
        dqn.batch_norm_stats, dqn.batch_norm_stats_target = (
            get_parameters_by_name(network, ["running_"]) for network in (dqn.q_net, dqn.q_net_target)
        )
        dqn.set_logger(Logger(folder=None, output_formats=[]))  # DQN's own makes a folder for temporary files
        steps = config["learning_starts"] + settings.steps * config["steps_per_update"]
        _, self._callback = dqn._setup_learn(steps)
        self._evaluation = make_vec_env(config["environment"], n_envs=config["episodes"])

    def _lr(self, _: float) -> float:
        """Return the learning rate of the first group in this update, in the form of DQN's own schedules."""
        return self._optimizer.param_groups[0]["lr"]

    def _set_lr(self, step: int) -> None:
        """Set the learning rate of update ``step + 1``."""
        factor = self._clock.lr_factor(step)
        for group, lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor

    def _collect(self, steps: int) -> None:
        """Make steps in the environment and keep them."""
        from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

        dqn, frequency = self._dqn, TrainFreq(steps, TrainFrequencyUnit.STEP)
        dqn.collect_rollouts(
            dqn.env, self._callback, frequency, dqn.replay_buffer, learning_starts=self._config["learning_starts"]
        )

    def backward(self, step: int) -> None:
        """Make the steps in the environment before update ``step + 1``; DQN computes the gradient in ``update``."""
        self._set_lr(step)
        self._collect(self._config["steps_per_update"])

    def observe(self, step: int) -> None:
        """Measure gradients and weights in the next update, between backward and the step."""
        self._observes = True

    def _before_step(self, *_: object) -> None:
        """Measure gradients and weights if the update is logged. DQN has clipped the gradient by then."""
        if self._observes:
            self._metrics.before_step()

    def update(self, step: int) -> None:
        """Make update ``step + 1`` on a batch of kept steps."""
        self._dqn.train(gradient_steps=1, batch_size=self._settings.batch_size)
        self._is_finite &= math.isfinite(self._loss)
        if self._observes:
            self._metrics.after_step()
            self._observes = False

    @property
    def _loss(self) -> float:
        """The loss of the last update, nan before the first: Huber's of the difference to the target."""
        return float(self._dqn.logger.name_to_value.get("train/loss", math.nan))

    def record(self, step: int) -> bool:
        """Write the log line of the state after ``step`` updates; return False if the run has diverged."""
        self._record(step)
        norm = self.last["norm/weight_l2"]  # None where it is not finite
        return self._is_finite and norm is not None and math.isfinite(norm)

    def _record(self, step: int) -> None:
        """Write the log line of the state after ``step`` updates."""
        line = {
            "step": step,
            "epoch": step / UPDATES_PER_EPOCH,
            "lr": self._optimizer.param_groups[0]["lr"],
            "strength": self._experiment.regularizer.strength_in_force,
            "environment_steps": self._dqn.num_timesteps,
        }
        line |= self._metrics.measure(whole_splits=False)
        line |= equilibrium.of_line(
            self._experiment.regularizer, self._optimizer.param_groups[0], UPDATES_PER_EPOCH, line
        )
        if step:
            line["train/td_loss"] = self._loss
        if is_due(self._settings, "eval_every", step):
            line |= self._scores()
        self._recorder.log(line)

    def _scores(self) -> dict[str, float]:
        """Return mean and standard deviation of the return over the evaluation episodes, without random actions."""
        from stable_baselines3.common.evaluation import evaluate_policy

        self._evaluation.seed(EVALUATION_SEED + self._experiment.seed)
        mean, deviation = evaluate_policy(self._dqn, self._evaluation, self._config["episodes"], deterministic=True)
        return {"score/mean_return": float(mean), "score/sd_return": float(deviation)}

    def save(self, step: int) -> None:
        """Write a checkpoint after the last update; none before, since the environment's state is not kept."""
        if step < self._settings.steps:
            return
        parts = {name: getattr(self._experiment, name).state_dict() for name in ("model", "optimizer", "regularizer")}
        state = {"step": step, "records_bytes": self._recorder.sync(), "finite": self._is_finite}
        state |= {"data_checksum": self._experiment.data.checksum, "rng": torch.get_rng_state()}
        checkpoint.save(self._run, state | parts)

    def any_true(self, flag: bool) -> bool:
        """Return ``flag``, since no other process shares the run."""
        return flag
