"""Registration of the sweeper and the launchers with Hydra. Called by ``train`` before Hydra starts."""

import sys
import types

from hydra.core.plugins import Plugins

from wdlab.sweeps.slurm import SlurmLauncher
from wdlab.sweeps.stacked_launcher import StackedLauncher
from wdlab.sweeps.sweeper import Sweep


def register() -> None:
    """Register the sweeper and the launchers with Hydra, under the module name ``hydra_plugins.wdlab``.

    No file has this module name. Hydra accepts a plugin only if its ``_target_`` starts with ``hydra_plugins.``, and
    the class is importable under that name and registered under its ``__module__``. Without the entry in
    ``sys.modules``, ``-m`` ends with "Error locating target". Without the assignment to ``__module__``, a need that
    Hydra does not document, ``-m`` ends with "Unknown plugin class".
    """
    try:
        import hydra_plugins
    except ImportError:  # no other plugin is installed
        hydra_plugins = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        hydra_plugins.__path__ = []
    hydra_plugins.wdlab = sys.modules["hydra_plugins.wdlab"] = sys.modules[__name__]
    for plugin in (Sweep, StackedLauncher, SlurmLauncher):
        plugin.__module__ = "hydra_plugins.wdlab"
        Plugins.instance().register(plugin)
