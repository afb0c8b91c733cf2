"""The routes of an L2 penalty through Adam: Bjorck et al. 2020, arXiv 2012.13841 (P4).

With ``g`` the loss gradient and ``r = s w`` that of the penalty, Adam's step is ``lr m / (sqrt(v) + eps)``, both
moments bias-corrected, and:

================= ==================================== ===============================
route             m is the mean of                     v is the mean of the squares of
================= ==================================== ===============================
both              g + r                                g + r
first             g + r                                g
second            g                                    g + r
separate_explicit g, and one of its own for r          g
separate          g; w /= 1 + lr s / (sqrt(v) + eps)   g
                  after the step
decoupled         g; w -= lr r before                  g
================= ==================================== ===============================
"""

from collections.abc import Sequence

from tests.reference.base import Gradients, Steps, Tensors
from tests.reference.schedules import Factor, constant


def routed(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    route: str,
    factor: Factor = constant,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Steps:
    """Yield the weights after each step of Adam with L2 on a route."""
    beta1, beta2 = betas
    m, m_of_r, v = ([0.0 * w for w in weights] for _ in range(3))
    for step, (gradient, lr) in enumerate(zip(gradients, lrs, strict=True)):
        now = factor(step, gradient, [s * w for w, s in zip(weights, strengths, strict=True)])
        new = []
        for i, (w, g, s) in enumerate(zip(weights, gradient, strengths, strict=True)):
            r = now * s * w
            in_m = g + r if route in ("both", "first") else g
            in_v = g + r if route in ("both", "second") else g
            m[i] = beta1 * m[i] + (1 - beta1) * in_m
            v[i] = beta2 * v[i] + (1 - beta2) * in_v**2
            m_of_r[i] = beta1 * m_of_r[i] + (1 - beta1) * r
            mean = m[i] + m_of_r[i] if route == "separate_explicit" else m[i]
            root = (v[i] / (1 - beta2 ** (step + 1))).sqrt() + eps
            before = w - lr * r if route == "decoupled" else w
            after = before - lr * mean / (1 - beta1 ** (step + 1)) / root
            new.append(after / (1 + lr * now * s / root) if route == "separate" else after)
        weights = new
        yield weights
