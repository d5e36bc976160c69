"""Made-up task sets for ``benchmarks/budget.py``: how often each task is solved, in how many ways, and what a try of it costs.

Written and committed before the adaptive budget that is measured on it was tuned, and not changed since; ``git log`` says so. The world that is
to be reported first is ``textworld-like`` with 96 tasks, uniform n = 8 and a cap of 2; all others are reported beside it, whatever comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Made:
    """One try: whether it passes, by which solution (a number, the same for the same actions), and the tokens that were sampled for it."""

    passed: bool
    solution: int
    tokens: int


@dataclass(frozen=True)
class World:
    """Draws a task set.

    ``rates``: pass rates of so many tasks, in [0, 1]. ``spread``: the concentration of a task's distribution over its solutions (the theta of
    Ewens' formula: 0 is one solution, infinity never the same twice), so many. ``spend``: mean tokens of a try, so many. A try that fails costs
    ``failing`` times as much as one that passes.
    """

    says: str
    rates: Callable[[Rng, int], Floats]
    spread: Callable[[Rng, int], Floats]
    spend: Callable[[Rng, int], Floats] = lambda rng, n: np.full(n, 30.0)
    failing: float = 1.0

    def tries(self, tasks: int, n: int, seed: int) -> dict[str, list[Made]]:
        """``n`` tries of each of ``tasks`` tasks. The same seed gives the same tries, and more of them begin with the fewer."""
        rng = np.random.default_rng(seed)
        rates, spread, spend = self.rates(rng, tasks), self.spread(rng, tasks), self.spend(rng, tasks)
        return {
            f"task-{at:04d}": _of_one(
                np.random.default_rng([seed, at]), n, float(rates[at]), float(spread[at]), float(spend[at]), self.failing
            )
            for at in range(tasks)
        }


def _of_one(rng: Rng, n: int, rate: float, theta: float, spend: float, failing: float) -> list[Made]:
    made: list[Made] = []
    seen: list[int] = []
    for _ in range(n):
        chance, urn, pick, length = rng.random(4)
        passed = chance < rate
        solution = -1
        if passed:  # Hoppe's urn: a new solution with chance theta / (theta + successes so far), or one drawn from those before
            new = not seen or np.isinf(theta) or urn < theta / (theta + len(seen))
            solution = max(seen, default=-1) + 1 if new else seen[int(pick * len(seen))]
            seen.append(solution)
        made.append(Made(bool(passed), solution, max(1, round(spend * (1.0 if passed else failing) * (0.5 + length)))))
    return made


def beta(a: float, b: float) -> Callable[[Rng, int], Floats]:
    return lambda rng, n: rng.beta(a, b, n)


def constant(value: float) -> Callable[[Rng, int], Floats]:
    return lambda rng, n: np.full(n, value)


def mixture(*parts: tuple[float, Callable[[Rng, int], Floats]]) -> Callable[[Rng, int], Floats]:
    """Each task from one of the parts, by their weights."""

    def draw(rng: Rng, n: int) -> Floats:
        which = rng.choice(len(parts), size=n, p=[weight for weight, _ in parts])
        drawn = np.stack([part(rng, n) for _, part in parts])
        return np.asarray(drawn[which, np.arange(n)])

    return draw


def lognormal(mean: float, sigma: float) -> Callable[[Rng, int], Floats]:
    return lambda rng, n: mean * np.exp(rng.normal(0.0, sigma, n) - sigma**2 / 2)


FEW = mixture((0.5, constant(0.0)), (0.5, constant(0.5)))  # half the tasks can be solved in one way only
SOME = lognormal(1.5, 0.8)
MANY = constant(float("inf"))

WORLDS: dict[str, World] = {
    "textworld-like": World(
        "a quarter hopeless, the rest from rare to usual; few ways; a failing try takes all its turns",
        mixture((0.25, constant(0.0)), (0.75, beta(0.6, 1.2))), SOME, failing=1.6,
    ),
    "hopeless": World("6 in 10 never, 2 in 10 rarely, 2 in 10 about half the time", mixture((0.6, constant(0.0)), (0.2, beta(1, 20)), (0.2, beta(2, 2))), SOME),
    "easy": World("7 in 10 nearly always, the rest one time in seven", mixture((0.7, beta(20, 2)), (0.3, beta(1, 6))), SOME),
    "even": World("every pass rate alike", beta(1, 1), SOME),
    "two kinds": World("nearly never or nearly always", beta(0.3, 0.3), SOME),
    "rare": World("all are hard: about one in twenty", beta(1, 19), SOME),
    "identical": World("all pass three times in ten: nothing to learn, only the price of waves", constant(0.3), MANY),
    "costs": World("costs differ tenfold, and a failing try costs double", beta(0.7, 1.5), SOME, lognormal(60.0, 1.0), failing=2.0),
    "one way": World("only one solution each: a second success is worth nothing", beta(0.5, 1.0), constant(0.0)),
    "few ways": World("one way, or few", beta(0.5, 1.0), FEW),
    "many ways": World("no two successes alike", beta(0.5, 1.0), MANY),
}  # fmt: skip
