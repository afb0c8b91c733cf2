"""Every kind of method, made for a model, for the tests that hold for all of them."""

from torch import nn

from wdlab.regularizers import (
    L1,
    L2,
    CoherenceGate,
    Coherent,
    ConstrainedRegularization,
    Corrected,
    DecoupledDecay,
    Early,
    GradientScale,
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

STRENGTH = 0.02
METHODS = {
    "l2": lambda model: L2.for_model(model, STRENGTH),
    "l2 first": lambda model: L2.for_model(model, STRENGTH, route="first"),
    "l2 second": lambda model: L2.for_model(model, STRENGTH, route="second"),
    "l2 gated": lambda model: L2.for_model(model, STRENGTH, over_time=CoherenceGate(threshold=-0.5)),
    "l1 early": lambda model: L1.for_model(model, STRENGTH, over_time=Early(steps=3)),
    "lp": lambda model: Lp.for_model(model, STRENGTH),
    "coherent": lambda model: Coherent.for_model(model, STRENGTH, coherence="total_gradient"),
    "projected": lambda model: Coherent.for_model(model, STRENGTH, coherence="project"),
    "decoupled": lambda model: DecoupledDecay.for_model(model, STRENGTH),
    "cautious": lambda model: DecoupledDecay.for_model(model, STRENGTH, cautious=True),
    "cautious corrected": lambda model: PNormDecay.for_model(
        model, STRENGTH, cautious=True, over_time=Corrected("all")
    ),
    "independent": lambda model: DecoupledDecay.for_model(model, STRENGTH, over_time=Independent()),
    "scheduled": lambda model: ScheduledDecay.for_model(model, STRENGTH),
    "pnorm": lambda model: PNormDecay.for_model(model, STRENGTH, p=0.8),
    "pnorm scheduled": lambda model: PNormDecay.for_model(model, STRENGTH, over_time=GradientScale()),
    "pnorm prox": lambda model: PNormProx.for_model(model, STRENGTH),
    "pruning": lambda model: MagnitudePruning.for_model(model, STRENGTH, zeros=0.5, steps=8),
    "elastic": lambda model: PNormDecay.for_model(model, STRENGTH, ridge=0.5),
    "huber": lambda model: HuberDecay.for_model(model, STRENGTH),
    "constrained": lambda model: ConstrainedRegularization.for_model(model, 1.0, warm_start=1),
    "pathprox": lambda model: PathProx.for_model(model, STRENGTH),
}
IN_THE_GRADIENT = ("l2", "l2 second", "l2 gated", "l1 early", "lp", "coherent", "projected", "pathprox")


def network() -> nn.Sequential:
    """An MLP with a homogeneous pair and a layer outside of it."""
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def made(name: str, model: nn.Module) -> Regularizer:
    return METHODS[name](model)
