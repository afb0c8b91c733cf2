"""wdlab: the methods of five papers on weight decay, and a lab that compares them.

Four parts need no package except torch: ``wdlab.optimizers`` (drop-in optimizers), ``wdlab.regularizers`` (methods for
any torch optimizer), ``wdlab.homogeneous`` (which parameters to decay) and ``wdlab.pruning`` (removal of dead units).
Experiments also need the packages of the extra ``lab`` and run from a checkout: ``python -m wdlab.train --help``.
"""

import importlib.util
import sys

__version__ = "0.1.0"

from wdlab import process, waiting

# Without this check, `python -m wdlab.train` ends in a traceback if the packages of the lab are not installed. Python
# imports this file first, and sys.argv[0] is "-m" until Python has found the module to run.
if sys.argv[:1] == ["-m"] and importlib.util.find_spec("hydra") is None:
    command = next((word for word in sys.orig_argv if word.removeprefix("-m").startswith("wdlab.")), "wdlab")
    print(f"error: {command} needs the lab; in a checkout: pip install -e '.[lab]'", file=sys.stderr)
    sys.exit(2)

if sys.argv[:1] == ["-m"] and "wdlab.train" in sys.orig_argv:
    process.pause_collections()
    process.end_on_interrupt()
if sys.argv[:1] == ["scripts/reproduce.py"]:
    process.end_on_interrupt()
waiting.limit_spinning()  # before any import of torch, after which the call has no effect
