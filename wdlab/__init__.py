"""wdlab: weight decay, tried, compared and believed.

Import what you need: ``wdlab.regularizers`` (methods for any torch optimizer) and ``wdlab.homogeneous`` (which
parameters to decay). Experiments run from a checkout: ``python -m wdlab.train --help``.
"""

__version__ = "0.1.0"

from wdlab import waiting

waiting.bound_spinning()
