"""Runs in an environment: Q-learning by stable-baselines3's DQN in place of the training on a data set.

* ``checks.py`` refuses, before training, what such a run cannot use.
* ``program.py`` is the run as a program that ``wdlab.loop`` drives.

stable-baselines3 and gymnasium are imported where a run begins, since they are an extra (``rl``) and slow to import.
"""

from wdlab.control.checks import check_environment
from wdlab.control.program import UPDATES_PER_EPOCH, ControlRun

__all__ = ["UPDATES_PER_EPOCH", "ControlRun", "check_environment"]
