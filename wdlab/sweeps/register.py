"""Registration of the sweeper and the launchers with Hydra. Called by ``train`` before Hydra starts."""

import sys
import types

from hydra.core.plugins import Plugins

from wdlab.sweeps.slurm import SlurmLauncher
from wdlab.sweeps.stacked_launcher import StackedLauncher
from wdlab.sweeps.sweeper import Sweep


def register() -> None:
    """Make the sweeper and the launchers known to Hydra, which takes plugins from the namespace hydra_plugins only."""
    try:
        import hydra_plugins
    except ImportError:  # no other plugin is installed
        hydra_plugins = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        hydra_plugins.__path__ = []
    hydra_plugins.wdlab = sys.modules["hydra_plugins.wdlab"] = sys.modules[__name__]
    for plugin in (Sweep, StackedLauncher, SlurmLauncher):
        plugin.__module__ = "hydra_plugins.wdlab"
        Plugins.instance().register(plugin)
