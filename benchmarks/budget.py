"""What an adaptive budget brings over a uniform one at equal tokens, replayed from recorded tries, so that it is cheap and paired.

    python benchmarks/budget.py --out budget.json                            # the made-up worlds, a minute or two
    python benchmarks/budget.py --pool POOL --out budget-textworld.json      # a pool of real tries

A pool is a folder that ``sharpen sample SETTINGS POOL --sampling.n 32`` and ``sharpen verify SETTINGS POOL`` left. Each seed puts every task's
tries into an order of its own, and both budgets take from the front of the same order: uniform n tries of every task, adaptive what its
planner asks for, wave by wave, until uniform's tokens are spent (a try that would pass them is not made). In the worlds each seed also draws
the tasks. A survivor is a success that selection would keep: distinct actions, at most ``--cap`` a task; all distinct ones are counted beside.

Ratios are of the means over seeds. Their intervals (95 %) are percentile bootstraps of 10 000 draws: over seeds, which are tasks and tries in the
worlds and only the tries' order in a pool; and, for a pool, over tasks too, each with its mean over the seeds.
"""

from __future__ import annotations

import argparse
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
    solutions: dict[str, set[Any]] = field(default_factory=lambda: defaultdict(set))
    tries_of: Counter[str] = field(default_factory=Counter)

    def add(self, task: str, made: Try) -> None:
        self.tries += 1
        self.tries_of[task] += 1
        self.tokens += made.tokens
        if made.outcome == "pass":
            self.solutions[task].add(made.solution)

    def kept(self, task: str, cap: int | None) -> int:
        found = len(self.solutions[task]) if task in self.solutions else 0
        return found if cap is None else min(found, cap)

    @property
    def survivors(self) -> int:
        return sum(self.kept(task, self.cap) for task in self.solutions)

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


class Spent(NamedTuple):
    """Adaptive's harvest at uniform's tokens and at uniform's number of tries, and the tokens at which it had uniform's survivors (NaN: never)."""

    equal_tokens: Harvest
    equal_tries: Harvest
    tokens_for_the_same: float


def adaptive(pool: Pool, budget: Adaptive, cap: int | None, seed: int, tokens: int, tries: int, survivors: int) -> Spent:
    """Waves until both the tokens and the tries are used up. The plan does not look at what is left, so one replay serves all three questions."""
    made: dict[str, list[Try]] = {task: [] for task in pool}
    by_tokens, by_tries, enough = Harvest(cap), Harvest(cap), math.nan
    running = Harvest(cap)
    full = False
    while not (full and running.tries >= tries and not math.isnan(enough)):
        wave = next_wave(made, budget, Terms(cap=cap), seed)
        if wave.ended:
            break
        for task in wave.tasks:
            one = pool[task][len(made[task])]
            made[task].append(one)
            running.add(task, one)
            full = full or by_tokens.tokens + one.tokens > tokens
            if not full:
                by_tokens.add(task, one)
            if by_tries.tries < tries:
                by_tries.add(task, one)
            if math.isnan(enough) and one.outcome == "pass" and running.survivors >= survivors:
                enough = running.tokens
    return Spent(by_tokens, by_tries, enough)


# ---------------------------------------------------------------- comparing


class Pair(NamedTuple):
    """One seed."""

    uniform: Harvest
    adaptive: Spent


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
        ours, theirs = ([measure(h) for h in side] for side in ([p.adaptive.equal_tokens for p in pairs], [p.uniform for p in pairs]))
        result[name] = {
            "uniform": statistics.mean(theirs),
            "adaptive": statistics.mean(ours),
            "ratio": interval(list(zip(ours, theirs, strict=True))),
        }
        if name != "covered":
            used = [p.adaptive.equal_tokens.tokens for p in pairs], [p.uniform.tokens for p in pairs]
            result[name]["per_million"] = {"uniform": 1e6 * sum(theirs) / sum(used[1]), "adaptive": 1e6 * sum(ours) / sum(used[0])}
    if tasks is not None:
        by_task = [
            tuple(
                statistics.mean(h.kept(task, cap) for h in side)
                for side in ([p.adaptive.equal_tokens for p in pairs], [p.uniform for p in pairs])
            )
            for task in tasks
        ]
        result["survivors"]["ratio_over_tasks"] = interval(by_task)
    result["tokens"] = {
        "uniform": statistics.mean(p.uniform.tokens for p in pairs),
        "adaptive": statistics.mean(p.adaptive.equal_tokens.tokens for p in pairs),
    }
    reached = [p for p in pairs if not math.isnan(p.adaptive.tokens_for_the_same)]
    result["tokens_for_the_same"] = {
        "reached_by": len(reached),
        "share": interval([(p.adaptive.tokens_for_the_same, p.uniform.tokens) for p in reached]) if reached else None,
    }
    result["at_equal_tries"] = {
        "survivors": interval([(float(p.adaptive.equal_tries.survivors), float(p.uniform.survivors)) for p in pairs]),
        "tokens": interval([(float(p.adaptive.equal_tries.tokens), float(p.uniform.tokens)) for p in pairs]),
    }
    return result


def measure(pools: Sequence[Pool], budget: Adaptive, n: int, cap: int, *, same_tasks: bool) -> dict[str, Any]:
    """Both budgets on the pool of each seed."""
    pairs = []
    for seed, pool in enumerate(pools):
        base = uniform(pool, n, cap)
        pairs.append(Pair(base, adaptive(pool, budget, cap, seed, base.tokens, base.tries, base.survivors)))
    return compare(pairs, cap, list(pools[0]) if same_tasks else None)


def show(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    def span(found: Sequence[float] | None) -> str:
        return "-" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"

    heads = ("survivors / M tokens", "survivors", "all distinct", "tasks covered", "tokens for the same")
    print(f"{'':<34}" + "".join(f"{head:>22}" for head in heads))
    for name, r in rows:
        per = r["survivors"]["per_million"]
        same = r["tokens_for_the_same"]
        cells = (
            f"{per['uniform']:.0f} -> {per['adaptive']:.0f}",
            *(span(r[what]["ratio"]) for what in MEASURES),
            span(same["share"]) + ("" if same["reached_by"] == r["seeds"] else f" ({same['reached_by']})"),
        )
        print(f"{name:<34}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, help="a folder of judged tries (default: the made-up worlds)")
    parser.add_argument("--world", choices=sorted(WORLDS), action="append", help="only this one; may be given again")
    parser.add_argument("--n", type=int, action="append", help="uniform tries of each task (default: 4, 8 and 16)")
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
        for n in args.n or (4, 8, 16):
            for cap in args.cap or (2,):
                if budget.first <= n <= depth:
                    rows.append((f"{Path(name).name}, n {n}, cap {cap}", measure(pools, budget, n, cap, same_tasks=source is not None)))
                    show(rows[-1:])
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
