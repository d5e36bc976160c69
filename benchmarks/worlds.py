"""Made-up ladders with known truth, for ``benchmarks/advisor.py``: numpy only, a round in well under a millisecond.

Written and committed before the advisor that is measured on them was tuned, and not changed since; ``git log`` says so. Seeds under ``FRESH`` are for
tuning; results come from seeds at or over it.

A *world* is a population of tasks, of which the splits are samples; a model is a shift in ability (a logit) for each of them. What a rung does is drawn
once for (world, method, attempt, what stands), the same for every policy that tries it there. All truth is of the population, integrated exactly.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rng = np.random.Generator
Rung = Literal["few-shot", "sft", "round", "distillation"]

FRESH = 1_000_000
NEVER = -40.0  # the ability at a task that is never produced: no training moves it within sight


@dataclass(frozen=True)
class Split:
    """A sample of the population: ``family`` of each task, its ``base`` ability, and ``own``, what sets its family apart in what training does to it."""

    family: NDArray[np.int64]
    base: Floats
    own: Floats


@dataclass(frozen=True)
class World:
    """Abilities are normal (``mean``, ``sd``) but for the share ``never`` of the tasks, which is out of reach.

    ``gain`` is the shift that the first round of self-training brings, ``decay`` what is left of it after each round that stands; ``spread`` how much
    families differ in it, ``luck`` the standard deviation of one training's shift, ``breaks`` the chance that a round harms. ``demonstrated`` and
    ``taught`` are how far a demonstrator's and a teacher's abilities are over the base's, ``copied`` the share of each distance that imitation goes.
    ``tpr`` and ``fpr`` are the verifier's; ``hack`` is how much of what is false among the survivors the model learns to produce. ``prompted`` is
    few-shot's shift. Costs are in tries of the model: ``row`` to train on one, ``lesson`` for one of the teacher's; ``budget`` is for all.
    """

    seed: int
    mean: float
    sd: float
    never: float
    dev: Split
    train: Split
    demos: int
    partial: bool
    gain: float
    decay: float
    spread: float
    luck: float
    breaks: float
    prompted: float
    demonstrated: float
    taught: float | None
    copied: tuple[float, float]
    terms: Literal["allowed", "forbidden", "unknown"]
    tpr: float
    fpr: float
    hack: float
    exact: bool
    row: float
    lesson: float
    budget: float
    tries: int
    evaluation: int
    goal: float


@dataclass(frozen=True)
class Standing:
    """A model in a world: its shift over the base, ``shift + tilt * own`` at each task, the verifier's false pass rate on it, and how it came to be."""

    fpr: float
    shift: float = 0.0
    tilt: float = 0.0
    rounds: int = 0
    path: tuple[str, ...] = ()
    prompt: float = 0.0


def draw(seed: int) -> World:
    """One world. Sizes run from two families to hundreds, difficulty from never to always, gains from harm through nothing to doubling the pass rate."""
    rng = np.random.default_rng([seed, 1])
    mean, sd, never = rng.normal(-0.8, 1.6), rng.uniform(0.4, 2.2), rng.choice([0.0, 0.0, rng.uniform(0, 0.6), rng.uniform(0.6, 1.0)])
    if rng.random() < 0.02:
        never = 1.0
    if rng.random() < 0.02:
        mean, sd, never = 9.0, 0.1, 0.0
    between = rng.uniform(0, 0.9)  # of the variance of abilities, the share that is between families

    def split(families: int, each: int) -> Split:
        family = np.repeat(np.arange(families), each)
        common, own = rng.normal(size=families)[family], rng.normal(size=len(family))
        base = mean + sd * (np.sqrt(between) * common + np.sqrt(1 - between) * own)
        base = np.where(rng.random(families)[family] < never, NEVER, base)
        return Split(family, base, rng.normal(size=families)[family])

    each = int(rng.choice([1, 1, 1, 2, 4]))
    dev = split(2 if rng.random() < 0.03 else int(np.exp(rng.uniform(np.log(10), np.log(500)))), each)
    train = split(2 if rng.random() < 0.03 else int(np.exp(rng.uniform(np.log(10), np.log(500)))), each)
    kind = rng.random()
    if kind < 0.12:  # training changes nothing at all
        gain, spread, luck, breaks = 0.0, 0.0, 0.0, 0.0
    elif kind < 0.30:  # self-training harms, as it may where the horizon is long
        gain, spread, luck, breaks = -rng.uniform(0.0, 0.8), rng.uniform(0, 0.6), rng.uniform(0, 0.15), 0.1
    else:
        gain, spread, luck, breaks = rng.gamma(2.0, 0.35), rng.uniform(0, 0.8), rng.uniform(0, 0.2), rng.choice([0.0, 0.1, 0.2])
    tpr, fpr, hack, exact = 1.0, 0.0, 0.0, True
    trust = rng.random()
    if trust > 0.60:
        tpr, fpr, exact = rng.uniform(0.75, 1.0), rng.choice([rng.uniform(0, 0.03), rng.uniform(0.03, 0.3)]), False
        hack = rng.choice([0.0, rng.uniform(0.2, 1.0)])
    if trust > 0.97:
        tpr, fpr, hack = 1.0, 1.0, 0.0  # says yes to everything
    teacher = rng.choice(["none", "worse", "same", "better", "better"])
    taught = {"none": None, "worse": -rng.uniform(0.2, 1.5), "same": 0.0, "better": rng.uniform(0.2, 3.0)}[str(teacher)]
    tries = int(rng.choice([4, 8, 8, 16]))
    evaluation = int(rng.choice([4, 8]))
    around = len(train.base) * tries + len(dev.base) * evaluation * 2
    return World(
        seed=seed, mean=float(mean), sd=float(sd), never=float(never), dev=dev, train=train,
        demos=int(rng.choice([0, 0, 10, 40, 200])), partial=bool(rng.random() < 0.3),
        gain=gain, decay=rng.uniform(0.3, 0.9), spread=spread, luck=luck, breaks=float(breaks),
        prompted=rng.normal(0.1, 0.5), demonstrated=rng.normal(0.8, 1.0), taught=taught,
        copied=(rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.95)), terms=str(rng.choice(["allowed", "allowed", "forbidden", "unknown"])),  # type: ignore[arg-type]
        tpr=float(tpr), fpr=float(fpr), hack=float(hack), exact=exact,
        row=rng.uniform(0.3, 4.0), lesson=float(np.exp(rng.uniform(0, np.log(20)))),
        budget=around * float(np.exp(rng.uniform(np.log(1.5), np.log(15)))), tries=tries, evaluation=evaluation,
        goal=float(np.clip(rng.uniform(0.3, 1.0), 0, 1)),
    )  # fmt: skip


def start(world: World) -> Standing:
    """The bare model."""
    return Standing(world.fpr)


def rates(world: World, model: Standing, split: str) -> Floats:
    """The true chance of success at each task of a split."""
    at: Split = getattr(world, split)
    return np.asarray(1 / (1 + np.exp(-(at.base + model.shift + model.tilt * at.own + model.prompt))))


def seen(world: World, model: Standing, split: str) -> Floats:
    """The chance that the verifier passes a try of each task."""
    p = rates(world, model, split)
    return np.asarray(world.tpr * p + model.fpr * (1 - p))


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def truth(world: World, model: Standing) -> float:
    """The true mean pass rate over the population: what every policy is judged by."""
    at = world.mean + model.shift + model.prompt + np.hypot(world.sd, model.tilt) * _NODES
    return float((1 - world.never) * (_WEIGHTS @ (1 / (1 + np.exp(-at)))))


def apparent(world: World, model: Standing) -> float:
    """The same by the verifier's word: what a run's pass rates are estimates of."""
    true = truth(world, model)
    return world.tpr * true + model.fpr * (1 - true)


def teacher(world: World) -> Standing:
    assert world.taught is not None
    return _moved(start(world), world.taught, 0.0, ("teacher",))


def demonstrator(world: World) -> Standing:
    return _moved(start(world), world.demonstrated, 0.0, ("demonstrator",))


def purity(world: World, model: Standing) -> float:
    """The share of what passes on train that is truly good. NaN where nothing would pass."""
    p = rates(world, model, "train")
    passing = float(seen(world, model, "train").mean())
    return float(world.tpr * p.mean() / passing) if passing else float("nan")


def attempt(world: World, model: Standing, rung: Rung, number: int = 0) -> Standing:
    """What the rung makes of what stands: try ``number`` of it there."""
    rng = np.random.default_rng([world.seed, 2, number, zlib.crc32("/".join((*model.path, rung)).encode())])
    luck, harm = rng.normal(0, world.luck) if world.luck else 0.0, rng.random() < world.breaks
    path = (*model.path, rung)
    if rung == "few-shot":
        return replace(model, prompt=world.prompted, path=path)
    model = replace(model, prompt=0.0)  # trained without the examples
    if rung == "round":
        pure = purity(world, model)
        if not pure > 0:
            mean = 0.0 if not np.nan_to_num(float(seen(world, model, "train").sum())) else -0.3
            solved = 0.0
        else:
            expected = 1 - (1 - seen(world, model, "train")) ** world.tries
            solved = float(min(1.0, expected.sum() / 10))  # under ten solved tasks there is little to learn from
            mean = world.gain * world.decay**model.rounds * (2 * pure - 1) * solved
        mean += luck * solved - (rng.uniform(0.1, 0.6) if harm else 0.0)
        fpr = model.fpr + (world.hack * (1 - pure) * (1 - model.fpr) if pure == pure else 0.0)
        spread = world.spread * min(1.0, abs(mean) / 0.3)
        moved = _moved(model, mean, spread, path)
        return replace(moved, fpr=min(fpr, 1.0), rounds=model.rounds + 1)
    target = world.demonstrated if rung == "sft" else world.taught
    assert target is not None
    share = world.copied[rung == "distillation"]
    if rung == "sft":
        share *= 1 - np.exp(-world.demos / 40)
    return _moved(model, share * (target - model.shift) + luck, share * (0.5 * world.spread - model.tilt), path)


def _moved(model: Standing, shift: float, tilt: float, path: tuple[str, ...]) -> Standing:
    return replace(model, shift=model.shift + shift, tilt=model.tilt + tilt, path=path)


def cost(world: World, rung: Rung, *, judged: bool = True) -> float:
    """In tries of the model: sampling, training and, where ``judged``, evaluation on dev."""
    look = len(world.dev.base) * world.evaluation if judged else 0.0
    tasks, rows = len(world.train.base), min(2, world.tries)
    match rung:
        case "few-shot":
            return look
        case "sft":
            return world.demos * world.row + look
        case "round":
            return tasks * (world.tries + rows * world.row) + look
    return tasks * rows * (world.lesson + world.row) + look
