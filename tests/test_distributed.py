"""Two gloo ranks on this machine, each with half of the batch, do what one process does with all of it.

The ranks are started once, run everything there is under DDP and under FSDP2, and leave their results in files.
"""

import collections
import datetime
import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from tests.problem import through_a_file
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import (
    L1,
    L2,
    CoherenceGate,
    ConstrainedRegularization,
    Corrected,
    DecoupledDecay,
    HuberDecay,
    Independent,
    Lp,
    MagnitudePruning,
    PathProx,
    PNormDecay,
    PNormProx,
    Regularizer,
    ScheduledDecay,
)
from wdlab.tensors import is_sharded

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo"
)
RANKS, STEPS, INTERRUPTED_AFTER = 2, 6, 3
LR = 0.02
Made = tuple[torch.optim.Optimizer, Regularizer | None]
Make = Callable[[nn.Module], Made]


def drop_in(kind: type[torch.optim.Optimizer], **options: Any) -> Make:
    return lambda model: (kind(model.parameters(), lr=LR, **options), None)


def on_adam(method: Callable[..., Regularizer], *arguments: Any, amsgrad: bool = False, **options: Any) -> Make:
    """The method on all weights and biases, attached to torch's Adam."""

    def make(model: nn.Module) -> Made:
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, amsgrad=amsgrad)
        regularizer = method(list(model.parameters()), *arguments, **options)
        regularizer.attach(optimizer)
        return optimizer, regularizer

    return make


def gated(coherence: str, threshold: float) -> Make:
    return on_adam(lambda params: L2(params, 0.3, over_time=CoherenceGate(coherence, threshold)))


def pathprox(model: nn.Module) -> Made:
    optimizer, method = torch.optim.Adam(model.parameters(), lr=LR), PathProx.for_model(model, 0.5)
    method.attach(optimizer)
    return optimizer, method


GATED = {
    "running_mean": gated("running_mean", 0.3),
    "total_gradient": gated("total_gradient", 0.9),
    "norm_ratio": gated("norm_ratio", 1.5),
}
SHARDABLE = {
    "AdamS": drop_in(AdamS, weight_decay=0.05),
    "AdamS, amsgrad": drop_in(AdamS, weight_decay=0.05, amsgrad=True),
    "AdamS, foreach": drop_in(AdamS, weight_decay=0.05, foreach=True),
    "SGDS": drop_in(SGDS, momentum=0.9, weight_decay=0.1),
    "PAdam, p=0.8": drop_in(PAdam, weight_decay=0.1, p=0.8),
    "PAdam, p=1": drop_in(PAdam, weight_decay=0.1, p=1.0),
    "DecoupledDecay": on_adam(DecoupledDecay, 0.3),
    "DecoupledDecay, cautious": on_adam(DecoupledDecay, 0.3, cautious=True),
    "DecoupledDecay, corrected": on_adam(lambda params: DecoupledDecay(params, 0.3, over_time=Corrected("all"))),
    "DecoupledDecay, independent": on_adam(lambda params: DecoupledDecay(params, 0.01, over_time=Independent())),
    "ScheduledDecay": on_adam(ScheduledDecay, 0.05),
    "ScheduledDecay, amsgrad": on_adam(ScheduledDecay, 0.05, amsgrad=True),
    "PNormDecay": on_adam(PNormDecay, 0.1),
    "PNormDecay, cautious": on_adam(PNormDecay, 0.1, cautious=True),
    "PNormDecay, late": on_adam(PNormDecay, 0.1, late=True),
    "PNormProx, p=1": on_adam(PNormProx, 0.5),
    "PNormProx, cautious": on_adam(PNormProx, 0.5, cautious=True),
    "PNormProx, p=1.5": on_adam(PNormProx, 0.5, p=1.5),
    "PNormDecay, elastic": on_adam(PNormDecay, 0.1, ridge=0.3),
    "HuberDecay": on_adam(HuberDecay, 0.3),
    "ConstrainedRegularization": on_adam(ConstrainedRegularization, 1.0, warm_start=1),
    "L1": on_adam(L1, 0.1),
    "L2": on_adam(L2, 0.3),
    "L2, first": on_adam(L2, 0.3, route="first"),
    "L2, second": on_adam(L2, 0.3, route="second"),
    "L2, separate": on_adam(L2, 0.3, route="separate"),
    "L2, separate_explicit": on_adam(L2, 0.3, route="separate_explicit"),
    "Lp": on_adam(Lp, 0.1),
    **{f"CoherenceGate, {coherence}": make for coherence, make in GATED.items()},
}
UNSHARDABLE = {"PathProx": pathprox, "MagnitudePruning": on_adam(MagnitudePruning, 0.3, zeros=0.5, steps=STEPS)}
METHODS = {"DDP": SHARDABLE | UNSHARDABLE, "FSDP2": SHARDABLE}
WHOLE_STATE = ("AdamS", "AdamS, amsgrad", "SGDS", "ScheduledDecay", "L2, first", "PAdam, p=0.8", "PNormDecay")
REPLICAS = ("AdamS", "CoherenceGate, total_gradient")


# -- training: the same in one process and in each rank ----------------------------------------------------------------


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A model, and inputs and targets for each step. Of the last layer, with one output, one rank has nothing."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)]
    return nn.Sequential(*layers).double(), torch.randn(STEPS, 8, 6).double(), torch.randn(STEPS, 8, 1).double()


class Trained(NamedTuple):
    """The weights at the end; behind every step the penalty, the strength in force and what a gate has seen."""

    weights: list[Tensor]
    penalties: list[float]
    strengths: list[float]
    statistics: list[float]


Interrupt = Callable[[nn.Module, torch.optim.Optimizer, Regularizer | None], Made]


def train(
    make: Make,
    interrupt: Interrupt | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    rows: slice = slice(None),
) -> Trained:
    """Train on the given rows of each batch; ``interrupt`` brings other optimizers in the middle of it."""
    model, inputs, targets = problem()
    wrapped = wrap(model)
    optimizer, method = make(model)
    penalties, strengths, statistics = [], [], []
    for step in range(STEPS):
        if step == INTERRUPTED_AFTER and interrupt is not None:
            optimizer, method = interrupt(model, optimizer, method)
        optimizer.zero_grad()
        nn.functional.mse_loss(wrapped(inputs[step, rows]), targets[step, rows]).backward()
        optimizer.step()
        if method is not None:
            penalties.append(method.penalty().item())
            strengths.append(method.strength_in_force)
            statistics += [gate.statistic.item() for gate in method.over_time if isinstance(gate, CoherenceGate)]
    weights = [p.full_tensor() if is_sharded(p) else p for p in model.parameters()]
    return Trained([w.detach() for w in weights], penalties, strengths, statistics)


def resume(make: Make) -> Interrupt:
    """Go on with new objects that have taken over the state of the old ones, each rank its own."""

    def interrupt(model: nn.Module, optimizer: torch.optim.Optimizer, method: Regularizer | None) -> Made:
        new_optimizer, new_method = make(model)
        new_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        if new_method is not None:
            new_method.load_state_dict(through_a_file(method.state_dict()))
        return new_optimizer, new_method

    return interrupt


def resume_from_whole_state(make: Make) -> Interrupt:
    """The same by a state dict of whole tensors, as ``torch.distributed.checkpoint`` makes it of all shards."""

    def interrupt(model: nn.Module, optimizer: torch.optim.Optimizer, method: Regularizer | None) -> Made:
        from torch.distributed.checkpoint import state_dict as checkpoint

        whole = checkpoint.StateDictOptions(full_state_dict=True)
        state = checkpoint.get_optimizer_state_dict(model, optimizer, options=whole)
        assert not any(is_sharded(value) for entries in state["state"].values() for value in entries.values())
        optimizer.zero_grad()
        new_optimizer, new_method = make(model)
        checkpoint.set_optimizer_state_dict(model, new_optimizer, state, options=whole)  # takes a step with lr = 0
        if new_method is not None:
            new_method.load_state_dict(method.state_dict())
        return new_optimizer, new_method

    return interrupt


adamw = drop_in(torch.optim.AdamW, weight_decay=0.05)


def adams_goes_on(model: nn.Module, optimizer: torch.optim.Optimizer, _: Regularizer | None) -> Made:
    """AdamS with what another Adam has left."""
    adams = AdamS(model.parameters(), lr=LR)
    adams.load_state_dict(optimizer.state_dict())
    return adams, None


# -- the ranks ---------------------------------------------------------------------------------------------------------


def shard(model: nn.Module, mesh_shape: tuple[int, ...] = (RANKS,)) -> nn.Module:
    """FSDP2, layer by layer; with a mesh of two dimensions the first one has replicas."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicas", "shards")[-len(mesh_shape) :])
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPS = {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": shard}


def refusals() -> list[str]:
    """What PathProx says of a sharded model, its pairs given or looked for, and what pruning says of it."""
    model = shard(problem()[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    said = []
    for make in (
        lambda: PathProx([(model[0], model[2])], 0.1),
        lambda: PathProx.for_model(model, 0.1),
        lambda: MagnitudePruning.for_model(model, 0.1, steps=STEPS),
    ):
        try:
            make().attach(optimizer)
        except ValueError as error:
            said.append(str(error))
    return said


def things_to_do(kind: str, rank: int) -> dict[str, Callable[[], Any]]:
    """All that a rank runs, by name."""
    run = functools.partial(train, wrap=WRAPS[kind], rows=slice(rank, None, RANKS))
    todo = {name: functools.partial(run, make) for name, make in METHODS[kind].items()}
    todo |= {f"{name}, resumed": functools.partial(run, make, resume(make)) for name, make in METHODS[kind].items()}
    todo["AdamS behind AdamW"] = functools.partial(run, adamw, adams_goes_on)
    if kind == "FSDP2":
        for name in WHOLE_STATE:
            make = SHARDABLE[name]
            todo[f"{name}, whole state"] = functools.partial(run, make, resume_from_whole_state(make))
        for name in REPLICAS:
            replicas = functools.partial(shard, mesh_shape=(RANKS, 1))
            todo[f"{name}, replicas"] = functools.partial(run, SHARDABLE[name], wrap=replicas)
        todo["shapes"] = lambda: [tuple(p.to_local().shape) for p in shard(problem()[0]).parameters()]
        todo["refusals"] = refusals
    return todo


def work(rank: int, folder: Path) -> None:
    """One rank: save, by kind and name, what came out, or the traceback as a string."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    patience = datetime.timedelta(seconds=30)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=patience)
    outcomes = {}
    todo = {f"{kind}, {name}": do for kind in METHODS for name, do in things_to_do(kind, rank).items()}
    for name, do in todo.items():
        try:
            outcomes[name] = do()
        except Exception:
            outcomes[name] = traceback.format_exc()
        store.set(f"{name} {rank}", "done")  # whoever failed waits, lest the next message meet one of this name
        store.wait([f"{name} {other}" for other in range(RANKS)], 2 * patience)
    torch.save(outcomes, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank has to say of one name; the ranks are started once for all names."""

    @functools.cache
    def all_outcomes() -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("ranks")
        try:
            torch.multiprocessing.spawn(work, (folder,), nprocs=RANKS)
        except (ProcessRaisedException, ProcessExitedException) as error:
            message = str(error)
            return [collections.defaultdict(lambda: message)]
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]

    def outcomes_of(kind: str, name: str) -> list[Any]:
        outcomes = [outcomes[f"{kind}, {name}"] for outcomes in all_outcomes()]
        for rank, outcome in enumerate(outcomes):
            if isinstance(outcome, str):
                pytest.fail(f"{kind}, {name}, rank {rank}: {outcome}")
        return outcomes

    return outcomes_of


EVERY_METHOD = [(kind, name) for kind, methods in METHODS.items() for name in methods]


@functools.cache
def alone(name: str) -> Trained:
    """One process with the whole batch."""
    return train(METHODS["DDP"][name])


def same(left: Trained, right: Trained) -> None:
    torch.testing.assert_close(tuple(left), tuple(right), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "name"), EVERY_METHOD)
def test_two_ranks_do_what_one_process_does(ranks, kind, name):
    for outcome in ranks(kind, name):
        same(outcome, alone(name))


@pytest.mark.parametrize(("kind", "name"), EVERY_METHOD)
def test_resumed_ranks_do_what_uninterrupted_ones_do(ranks, kind, name):
    for resumed, whole in zip(ranks(kind, f"{name}, resumed"), ranks(kind, name), strict=True):
        assert all(torch.equal(w, v) for w, v in zip(resumed.weights, whole.weights, strict=True))
        assert resumed[1:] == whole[1:]


@pytest.mark.parametrize("coherence", GATED)
def test_the_gates_here_open_and_close(coherence):
    assert set(alone(f"CoherenceGate, {coherence}").strengths) == {0.0, 0.3}


@pytest.mark.parametrize("kind", METHODS)
def test_adams_takes_over_the_state_of_adamw(ranks, kind):
    for outcome in ranks(kind, "AdamS behind AdamW"):
        same(outcome, train(adamw, adams_goes_on))


def test_shards_are_uneven_and_one_is_empty(ranks):
    first, second = ranks("FSDP2", "shapes")
    assert first == [(3, 6), (3,), (2, 5), (2,), (2, 4), (2,), (1, 3), (1,)]
    assert second == [(2, 6), (2,), (2, 5), (2,), (1, 4), (1,), (0, 3), (0,)]


@pytest.mark.parametrize("name", WHOLE_STATE)
def test_a_whole_state_dict_goes_back_to_the_shards(ranks, name):
    for outcome in ranks("FSDP2", f"{name}, whole state"):
        same(outcome, alone(name))


@pytest.mark.parametrize("name", REPLICAS)
def test_replicas_count_once(ranks, name):
    for outcome in ranks("FSDP2", f"{name}, replicas"):
        same(outcome, alone(name))


def test_pathprox_and_pruning_refuse_sharded_weights(ranks):
    for *of_pathprox, of_pruning in ranks("FSDP2", "refusals"):
        assert len(of_pathprox) == 2
        assert all(message.startswith("PathProx: cannot work on sharded weights") for message in of_pathprox)
        assert of_pruning.startswith("MagnitudePruning: cannot prune sharded weights")
