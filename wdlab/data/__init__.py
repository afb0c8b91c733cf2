"""Data sets as whole splits on the device, and batches that are a pure function of (seed, step).

* ``description.py`` checks the values of a ``configs/dataset`` file.
* ``sources.py`` reads the files of a data set.
* ``load.py`` makes the three splits from these files.
* ``splits.py`` defines the classes of splits, ``Images`` and ``Text``.
* ``augment.py`` varies images at random.
* ``environment.py`` describes environments of reinforcement learning in place of data sets.
* ``batches.py`` puts the examples of each epoch in random order.

``wdlab.build`` calls ``load``; the training loop reads ``Data`` and ``Batches``.
"""

from wdlab.data.batches import Batches, StackedBatches
from wdlab.data.description import check_batch_size, check_description
from wdlab.data.environment import Environment, is_environment
from wdlab.data.load import check_data_and_batch_size, checksum, load
from wdlab.data.splits import Data, Images, Split, Text

__all__ = [
    "Batches",
    "Data",
    "Environment",
    "Images",
    "Split",
    "StackedBatches",
    "Text",
    "check_batch_size",
    "check_data_and_batch_size",
    "check_description",
    "checksum",
    "is_environment",
    "load",
]
