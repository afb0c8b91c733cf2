"""Data sets as whole splits on the device, and batches that are a pure function of (seed, step).

``description.py`` says what a ``configs/dataset`` file may hold, ``sources.py`` reads files, ``splits.py`` makes the
three splits of them, ``augment.py`` varies images, ``batches.py`` orders examples. Called by ``train``; the loop reads
``Data`` and ``Batches``.
"""

from wdlab.data.batches import Batches, StackedBatches
from wdlab.data.description import check_batch_size, check_description
from wdlab.data.load import check, checksum, load
from wdlab.data.splits import Data, Images, Split, Text

__all__ = [
    "Batches",
    "Data",
    "Images",
    "Split",
    "StackedBatches",
    "Text",
    "check",
    "check_batch_size",
    "check_description",
    "checksum",
    "load",
]
