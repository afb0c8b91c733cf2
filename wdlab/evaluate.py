"""The command line that measures a finished or interrupted run from its checkpoint, without training.

    python -m wdlab.evaluate results/runs/<run>                          # every metric of its last state
    python -m wdlab.evaluate results/runs/<run> --prune --save results/local/small.pt  # also without its dead units

Settings of ``configs/runtime`` and the folder of the data sets can be given: ``runtime.device=cpu paths.data=DIR``.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from wdlab import data, metrics, pruning
from wdlab.build import Parts, build_parts, instantiate_node
from wdlab.engine import averaging, device
from wdlab.errors import ConfigError, WdlabError, explain
from wdlab.footprint import footprints
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config
from wdlab.settings import read_runtime
from wdlab.tracing import attributes_restored
from wdlab.validation import check_data_unchanged

SETTABLE = ("runtime.", "paths.data=")


@dataclass(frozen=True)
class OpenedRun:
    """A run as its last checkpoint has it, on the device of this machine.

    Args:
        config: the run's config, see ``_config``.
        state: the checkpoint.
        built: the objects of the run; ``built.model`` has the weights of the checkpoint, and the regularizer is not
            attached to the optimizer.
        machine: the device.
        data: the splits of the data set.
    """

    config: DictConfig
    state: dict[str, Any]
    built: Parts
    machine: device.Machine
    data: data.Data


def open_run(folder: Path, overrides: Sequence[str] = ()) -> OpenedRun:
    """Load a run's last checkpoint and its data. The arguments and errors are those of :func:`evaluate`."""
    config = _config(folder, overrides)
    directory = RunDirectory(folder.parent, folder.name)
    if data.is_environment(config["dataset"]):
        raise ConfigError(f"{folder}: is a run in an environment, which has no splits to evaluate on")
    state = checkpoint.load_or_raise(directory)
    check_data_unchanged(config, directory, state)
    built = build_parts(config)
    built.model.load_state_dict(state["model"])
    machine = device.set_up(config["runtime"], built.model)
    machine.place(built.model)
    return OpenedRun(
        config, state, built, machine, data.load(config["dataset"], config["paths"]["data"], machine.device)
    )


def evaluate(
    folder: Path, overrides: list[str], sharpness: bool = False, prune: bool = False, average: bool = False
) -> dict[str, Any]:
    """Measure the network in a run's last checkpoint.

    Args:
        folder: the directory of the run.
        overrides: ``key=value`` for settings of ``runtime`` and for ``paths.data``; others are refused.
        sharpness: True also measures the Hessian and the Lipschitz bounds.
        prune: True also measures the network without its dead units.
        average: True measures the network with averaged weights (``train.average_decay``) instead of the trained one.

    Returns:
        A dict with ``step``; ``network``, the text "as trained" or "averaged"; ``model``, the network; and ``metrics``,
        its metrics under the names of the run's log lines. With ``prune`` also ``footprint``, the parameters, bytes and
        latency (ms per batch in the run's precision) of the network, and ``pruned``, a dict with ``model``,
        ``metrics`` and ``footprint`` of the network without dead units.

    Raises:
        ConfigError: if the folder is not the directory of a run, the run has no averaged weights, or an override sets
            another key.
        CheckpointError: if the checkpoint is missing or damaged, or the data set is not the one of the training.
    """
    run = open_run(folder, overrides)
    config, state, built, machine, splits = run.config, run.state, run.built, run.machine, run.data
    model = built.model

    refresh_average = None
    if "average" in state:
        averaged = averaging.WeightAverage(model, config["train"]["average_decay"])
        averaged.load_state_dict(state["average"])
        refresh_average = averaged.refresh_batch_statistics
    if average:
        if refresh_average is None:
            raise ConfigError(f"{folder}: has no average of the weights, it was trained without train.average_decay")
        model.load_state_dict(refresh_average(splits.train, machine.autocast).state_dict())
        refresh_average = None

    def measured(network: nn.Module, method: Any, average: Any = None) -> dict[str, float]:
        examples = config["train"].get("sharpness_examples") or metrics.SHARPNESS_EXAMPLES
        options = {"autocast": machine.autocast, "sharpness_examples": examples, "average": average}
        with attributes_restored(network):
            return metrics.Metrics(network, splits, method, **options).measure(True, sharpness)

    of_trained = measured(model, built.regularizer, refresh_average)
    network = "averaged" if average else "as trained"
    result: dict[str, Any] = {"step": state["step"], "network": network, "model": model, "metrics": of_trained}
    if prune:
        smaller = pruning.prune_dead_units(model)
        batch, _ = splits.test.examples(slice(0, min(len(splits.test), config["train"]["batch_size"])))
        with machine.autocast():
            result["footprint"], cost = footprints([model, smaller], batch)
        method = instantiate_node(OmegaConf.to_container(config["regularizer"], resolve=True), model=smaller)
        result["pruned"] = {"model": smaller, "metrics": measured(smaller, method), "footprint": cost}
    return result


def _config(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the run's config with default ``paths`` and default ``runtime``, except for the run's own precision.

    Args:
        folder: the directory of the run.
        overrides: ``key=value`` for keys in ``SETTABLE``, applied last.

    Raises:
        ConfigError: for another key, a folder without ``config.yaml``, or settings that this machine cannot use.
    """
    for override in overrides:
        if "=" not in override or not override.startswith(SETTABLE):
            raise ConfigError(f"{override}: only {' and '.join(SETTABLE)} can be set, the rest is the run's own")
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except OSError as error:
        raise ConfigError(f"{folder}: is no run, it has no config.yaml") from error
    defaults = compose_config([])
    config["runtime"] = OmegaConf.merge(defaults["runtime"], {"precision": config["runtime"]["precision"]})
    config["paths"] = defaults["paths"]
    OmegaConf.set_struct(config, True)
    config.merge_with_dotlist(list(overrides))
    device.check_runtime(read_runtime(config))
    return config


def _table(result: dict[str, Any], folder: Path) -> str:
    """Return the result of ``evaluate`` as a text table: a line per metric, a column per network (trained, pruned)."""
    columns = {result["network"]: result, **({"pruned": result["pruned"]} if "pruned" in result else {})}
    rows = {key: [column["metrics"].get(key) for column in columns.values()] for key in result["metrics"]}
    if "footprint" in result:
        sizes = [column["footprint"] for column in columns.values()]
        rows |= {name: [getattr(size, name) for size in sizes] for name in ("parameters", "bytes", "latency_ms")}
    lines = [f"{folder.name}, step {result['step']}", " " * 40 + "".join(f"{name:>14}" for name in columns)]
    for key, values in rows.items():
        lines.append(f"{key:40}" + "".join(f"{'' if v is None else format(v, '.6g'):>14}" for v in values))
    if "pruned" in result and result["pruned"]["footprint"].parameters == result["footprint"].parameters:
        lines.append("no dead units")
    return "\n".join(lines)


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of ``evaluate`` without the networks, for JSON; numbers that are not finite become None."""
    plain = {key: value for key, value in result.items() if key != "model"}
    plain["metrics"] = {key: value if math.isfinite(value) else None for key, value in result["metrics"].items()}
    if "footprint" in plain:
        plain["footprint"] = vars(plain["footprint"])
    return {key: _plain(value) if key == "pruned" else value for key, value in plain.items()}


def main() -> None:
    """Run the command line. Exit code 0 after printing the metrics, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m wdlab.evaluate",
        description="Measure a finished or interrupted run from its checkpoint, without training.",
    )
    parser.add_argument("run", type=Path, help="its directory")
    parser.add_argument("overrides", nargs="*", default=[], help="runtime.device=cpu, paths.data=DIR, ...")
    parser.add_argument("--sharpness", action="store_true", help="measure the Hessian and Lipschitz bounds too")
    parser.add_argument(
        "--prune", action="store_true", help="measure it without dead units too: accuracy, size, latency"
    )
    parser.add_argument("--average", action="store_true", help="take the network with averaged weights")
    parser.add_argument("--save", type=Path, help="write the (pruned) network, for torch.load(..., weights_only=False)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.save:
            if arguments.save.is_dir():
                raise ConfigError(f"--save {arguments.save}: is a folder, must be a file")
            arguments.save.parent.mkdir(parents=True, exist_ok=True)
        options = arguments.sharpness, arguments.prune, arguments.average
        result = evaluate(arguments.run.resolve(), arguments.overrides, *options)
        if arguments.save:
            with arguments.save.open("wb") as file:
                torch.save(result.get("pruned", result)["model"].cpu(), file)
    except (WdlabError, OmegaConfBaseException, OSError, yaml.YAMLError) as error:
        print(f"error: {explain(error) or str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(_plain(result), indent=2) if arguments.json else _table(result, arguments.run.resolve()))
    if arguments.save:
        print(f"saved {arguments.save}", file=sys.stderr if arguments.json else sys.stdout)


if __name__ == "__main__":
    main()
