"""Download a data set with torchvision into the data folder. Called by ``make fetch-mnist``.

python scripts/fetch_data.py mnist
"""

import argparse
import sys

from omegaconf import DictConfig

from wdlab import data
from wdlab.data.sources import INSTALLED
from wdlab.errors import explain
from wdlab.records.identity import compose_config


def main() -> None:
    """Run the command line. The exit code is 2 if the data set is unknown or cannot be downloaded."""
    parser = argparse.ArgumentParser(description="Download a data set with torchvision into the data folder.")
    parser.add_argument("dataset", help="name of a file in configs/dataset, such as mnist")
    arguments = parser.parse_args()
    try:
        config = compose_config([f"dataset={arguments.dataset}"])
        data.check_data_and_batch_size(config["dataset"], config["paths"]["data"], batch_size=1)
        print(f"{arguments.dataset}: {where(config)}")
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def where(config: DictConfig) -> str:
    """Return where the data set of a config is, after it was checked or downloaded."""
    if data.is_environment(config["dataset"]):
        return "an environment, nothing to fetch; needs the extra rl, see docs/data.md"
    if config["dataset"]["name"] in INSTALLED:
        return "installed with scikit-learn, nothing to fetch"
    return f"ready under {config['paths']['data']}"


if __name__ == "__main__":
    main()
