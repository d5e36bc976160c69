"""What an adaptive budget brings over a uniform one at equal tokens, replayed from recorded tries, so that it is cheap and paired.

    python benchmarks/budget.py --out budget.json                            # the made-up worlds, a minute or two
    python benchmarks/budget.py --pool POOL --out budget-textworld.json      # a pool of real tries

A pool is a folder that ``sharpen sample SETTINGS POOL --sampling.n 32`` and ``sharpen verify SETTINGS POOL`` left. Each seed puts every task's
tries into an order of its own, and both budgets take from the front of the same order: uniform n tries of every task, adaptive what its
planner asks for, wave by wave, until uniform's tokens are spent (a try that would pass them is not made). In the worlds each seed also draws
the tasks. A survivor is a success that selection would keep: distinct actions, at most ``--cap`` a task; all distinct ones are counted beside.

Ratios are of the means over seeds. Their intervals (95 %) are percentile bootstraps of 10 000 draws: over seeds, which are tasks and tries in the
worlds and only the tries' order in a pool; and, for a pool, over tasks too, each with its mean over the seeds. The ceiling is
what somebody would bring who knew every task's true rates beforehand, which only a made-up world can tell.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from budget_worlds import WORLDS

from sharpen.budget import Adaptive, Terms, Try, next_wave
from sharpen.records import Trajectory, Verdict
from sharpen.store.segments import Segments, order

Pool = Mapping[str, Sequence[Try]]


def recorded(folder: Path) -> dict[str, list[Try]]:
    """The judged tries in a folder, by task."""
    trajectories, verdicts = Segments(folder / "trajectories", Trajectory).records, Segments(folder / "verdicts", Verdict).records
    pool: dict[str, list[Try]] = defaultdict(list)
    for key in sorted(trajectories, key=order):
        pool[key.task].append(Try(verdicts[key].outcome, trajectories[key].actions, trajectories[key].cost.sampled_tokens))
    return dict(pool)


def made_up(world: str, tasks: int, n: int, seed: int) -> dict[str, list[Try]]:
    tries = WORLDS[world].tries(tasks, n, seed)
    return {task: [Try("pass" if one.passed else "fail", one.solution, one.tokens) for one in made] for task, made in tries.items()}


def shuffled(pool: Pool, seed: int) -> dict[str, list[Try]]:
    return {task: random.Random(f"{seed}/{task}").sample(tries, len(tries)) for task, tries in pool.items()}


# ---------------------------------------------------------------- the two budgets


@dataclass
class Harvest:
    """What a sequence of tries brought, in launch order, as far as ``tokens`` go."""

    cap: int | None
    tries: int = 0
    tokens: int = 0
    survivors: int = 0
    solutions: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))

    def add(self, task: str, made: Try) -> None:
        self.tries += 1
        self.tokens += made.tokens
        if made.outcome == "pass" and made.solution not in (found := self.solutions[task]):
            found.add(made.solution)
            self.survivors += self.cap is None or len(found) <= self.cap

    def kept(self, task: str, cap: int | None) -> int:
        found = len(self.solutions[task]) if task in self.solutions else 0
        return found if cap is None else min(found, cap)

    @property
    def distinct(self) -> int:
        return sum(map(len, self.solutions.values()))

    @property
    def covered(self) -> int:
        return len(self.solutions)


def uniform(pool: Pool, n: int, cap: int | None) -> Harvest:
    harvest = Harvest(cap)
    for index in range(n):
        for task, tries in pool.items():
            harvest.add(task, tries[index])
    return harvest


Launched = list[tuple[str, Try]]


def adaptive(pool: Pool, budget: Adaptive, cap: int | None, seed: int, tokens: int, tries: int) -> Launched:
    """Whole waves until both ``tokens`` and ``tries`` are used up or the plan ends. What is left never changes a plan, so any smaller budget
    is the beginning of this."""
    made: dict[str, list[Try]] = {task: [] for task in pool}
    launched: Launched = []
    spent = 0
    while spent < tokens or len(launched) < tries:
        wave = next_wave(made, budget, Terms(cap=cap), seed)
        if wave.ended:
            break
        for task in wave.tasks:
            one = pool[task][len(made[task])]
            made[task].append(one)
            launched.append((task, one))
            spent += one.tokens
    return launched


def informed(pool: Pool, chances: Mapping[str, tuple[float, float]], budget: Adaptive, cap: int, tokens: int) -> Launched:
    """What nobody can know: try by try where most new survivors a token are to be expected, given each task's (pass rate, diversity of solutions).

    A ceiling for anything that has to find these out.
    """
    at, passes, harvest = Counter[str](), Counter[str](), Harvest(cap)
    launched: Launched = []

    def worth(task: str) -> float:
        if at[task] >= budget.max_tries or harvest.kept(task, None) >= cap:
            return 0.0
        rate, theta = chances[task]
        new = 1.0 if not passes[task] or math.isinf(theta) else theta / (theta + passes[task])
        return rate * new / statistics.mean(one.tokens for one in pool[task])

    heap = [(-worth(task), task) for task in pool]
    heapq.heapify(heap)
    while harvest.tokens < tokens:
        value, task = heapq.heappop(heap)
        if not value:
            break
        one = pool[task][at[task]]
        launched.append((task, one))
        harvest.add(task, one)
        at[task] += 1
        passes[task] += one.outcome == "pass"
        heapq.heappush(heap, (-worth(task), task))
    return launched


def within(launched: Launched, cap: int | None, tokens: float = math.inf, tries: float = math.inf) -> Harvest:
    """The harvest of the tries that fit, up to the first that does not."""
    harvest = Harvest(cap)
    for task, one in launched:
        if harvest.tries >= tries or harvest.tokens + one.tokens > tokens:
            break
        harvest.add(task, one)
    return harvest


def tokens_until(launched: Launched, cap: int, survivors: int) -> float:
    """Tokens at which there are so many survivors; NaN where there never are."""
    harvest = Harvest(cap)
    for task, one in launched:
        harvest.add(task, one)
        if one.outcome == "pass" and harvest.survivors >= survivors:
            return harvest.tokens
    return math.nan


# ---------------------------------------------------------------- comparing


class Pair(NamedTuple):
    """One seed: uniform's harvest, adaptive's at as many tokens and at as many tries, the tokens it took for as many survivors, and the ceiling."""

    uniform: Harvest
    adaptive: Harvest
    at_equal_tries: Harvest
    tokens_for_the_same: float
    informed: Harvest | None


MEASURES = {
    "survivors": lambda h: float(h.survivors),
    "distinct": lambda h: float(h.distinct),
    "covered": lambda h: float(h.covered),
}


def interval(ratios: Sequence[tuple[float, float]], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of the sums of (numerator, denominator) pairs, with its bootstrap over the pairs."""
    pairs = np.array(ratios)
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(10_000, len(pairs)))
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = pairs[drawn].sum(axis=1)
        low, high = np.nanquantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
        value = pairs[:, 0].sum() / pairs[:, 1].sum()
    return float(value), float(low), float(high)


def compare(pairs: Sequence[Pair], cap: int, tasks: Sequence[str] | None) -> dict[str, Any]:
    """Ratios adaptive over uniform, and what stands behind them. ``tasks`` where the same tasks come again in every seed."""
    result: dict[str, Any] = {"seeds": len(pairs)}
    for name, measure in MEASURES.items():
        ours, theirs = ([measure(h) for h in side] for side in ([p.adaptive for p in pairs], [p.uniform for p in pairs]))
        result[name] = {
            "uniform": statistics.mean(theirs),
            "adaptive": statistics.mean(ours),
            "ratio": interval(list(zip(ours, theirs, strict=True))),
        }
        if name != "covered":
            used = [p.adaptive.tokens for p in pairs], [p.uniform.tokens for p in pairs]
            result[name]["per_million"] = {"uniform": 1e6 * sum(theirs) / sum(used[1]), "adaptive": 1e6 * sum(ours) / sum(used[0])}
    if tasks is not None:
        by_task = [
            tuple(statistics.mean(h.kept(task, cap) for h in side) for side in ([p.adaptive for p in pairs], [p.uniform for p in pairs]))
            for task in tasks
        ]
        result["survivors"]["ratio_over_tasks"] = interval(by_task)
    result["tokens"] = {
        "uniform": statistics.mean(p.uniform.tokens for p in pairs),
        "adaptive": statistics.mean(p.adaptive.tokens for p in pairs),
    }
    reached = [p for p in pairs if not math.isnan(p.tokens_for_the_same)]
    result["tokens_for_the_same"] = {
        "reached_by": len(reached),
        "share": interval([(p.tokens_for_the_same, p.uniform.tokens) for p in reached]) if reached else None,
    }
    result["at_equal_tries"] = {
        "survivors": interval([(float(p.at_equal_tries.survivors), float(p.uniform.survivors)) for p in pairs]),
        "tokens": interval([(float(p.at_equal_tries.tokens), float(p.uniform.tokens)) for p in pairs]),
    }
    known = [(float(p.informed.survivors), float(p.uniform.survivors)) for p in pairs if p.informed]
    result["ceiling"] = interval(known) if known else None
    return result


def measure(pools: Sequence[Pool], budget: Adaptive, sizes: Sequence[int], cap: int, world: str | None) -> dict[int, dict[str, Any]]:
    """Both budgets on the pool of each seed, for each number of uniform tries."""
    pairs: dict[int, list[Pair]] = {n: [] for n in sizes}
    for seed, pool in enumerate(pools):
        bases = {n: uniform(pool, n, cap) for n in sizes}
        largest = bases[max(sizes)]
        # Half as much again, so that where adaptive is behind it can still be seen by how much.
        launched = adaptive(pool, budget, cap, seed, 3 * largest.tokens // 2, largest.tries)
        known = informed(pool, chances(world, list(pool), seed), budget, cap, largest.tokens) if world else None
        for n, base in bases.items():
            pairs[n].append(
                Pair(
                    base,
                    within(launched, cap, tokens=base.tokens),
                    within(launched, cap, tries=base.tries),
                    tokens_until(launched, cap, base.survivors),
                    within(known, cap, tokens=base.tokens) if known is not None else None,
                )
            )
    return {n: compare(found, cap, None if world else list(pools[0])) for n, found in pairs.items()}


def chances(world: str, tasks: Sequence[str], seed: int) -> dict[str, tuple[float, float]]:
    """Pass rate and diversity of each task, drawn as ``World.tries`` draws them."""
    rng = np.random.default_rng(seed)
    rates, spread = (draw(rng, len(tasks)) for draw in (WORLDS[world].rates, WORLDS[world].spread))
    return {task: (float(rates[at]), float(spread[at])) for at, task in enumerate(tasks)}


def show(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    def span(found: Sequence[float] | None) -> str:
        return "-" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"

    heads = ("survivors / M tokens", "survivors", "all distinct", "tasks covered", "tokens for the same", "ceiling")
    print(f"{'':<34}" + "".join(f"{head:>22}" for head in heads))
    for name, r in rows:
        per = r["survivors"]["per_million"]
        same = r["tokens_for_the_same"]
        cells = (
            f"{per['uniform']:.0f} -> {per['adaptive']:.0f}",
            *(span(r[what]["ratio"]) for what in MEASURES),
            span(same["share"]) + ("" if same["reached_by"] == r["seeds"] else f" ({same['reached_by']})"),
            span(r["ceiling"]),
        )
        print(f"{name:<34}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, help="a folder of judged tries (default: the made-up worlds)")
    parser.add_argument("--world", choices=sorted(WORLDS), action="append", help="only this one; may be given again")
    parser.add_argument("--n", type=int, action="append", help="uniform tries of each task (default: 8, 16 and 32)")
    parser.add_argument("--cap", type=int, action="append", help="survivors of one task (default: 2)")
    parser.add_argument("--tasks", type=int, default=96, help="tasks of a made-up world")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=Adaptive().first)
    parser.add_argument("--wave", type=int, default=Adaptive().wave)
    parser.add_argument("--max-tries", type=int, default=Adaptive().max_tries, help="not more than a pool holds of a task")
    parser.add_argument("--out", type=Path, default=Path("budget.json"))
    args = parser.parse_args()

    rows: list[tuple[str, dict[str, Any]]] = []
    source = recorded(args.pool) if args.pool else None
    depth = min(map(len, source.values())) if source else args.max_tries
    budget = Adaptive(first=args.first, wave=args.wave, max_tries=min(args.max_tries, depth))
    for name in [str(args.pool)] if source else (args.world or WORLDS):
        pools: list[Pool] = [shuffled(source, seed) if source else made_up(name, args.tasks, depth, seed) for seed in range(args.seeds)]
        sizes = [n for n in args.n or (8, 16, 32) if budget.first <= n <= depth]
        for cap in args.cap or (2,):
            found = measure(pools, budget, sizes, cap, None if source else name)
            rows += [(f"{Path(name).name}, n {n}, cap {cap}", result) for n, result in found.items()]
            show(rows[-len(found) :])
    show(rows)
    report = {
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
        "settings": {key: str(value) for key, value in vars(args).items()} | {"tries_recorded": depth},
        "rows": dict(rows),
    }
    args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
