"""How good an agent is on a split: pass@1 and pass@k, by task, with intervals over families; and how good demonstrations are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import msgspec

from sharpen.errors import SettingsError
from sharpen.policies.base import Sampling
from sharpen.records import Cost, DemonstrationQuality, Evaluation, Measurements, Parting, Record, Task, TaskResult
from sharpen.sampling import Pool
from sharpen.stats import cluster_bootstrap_mean, pass_interval


class EvaluationSettings(Record, frozen=True, kw_only=True):
    """Fixed for the whole ladder, so that rungs can be compared.

    ``n`` tries of every task; pass@k for each ``k`` (at most ``n``). Where a gain stays undecided the tries are doubled until they would
    pass ``max_n`` (0: never), for both rungs; the alpha is shared among these looks too.
    """

    n: int = 4
    k: tuple[int, ...] = (1, 4)
    max_n: int = 0
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n is {self.n}, but must be at least 1")
        for k in self.k:
            if not 1 <= k <= self.n:
                raise SettingsError(f"k holds {k}, but pass@k needs 1 <= k <= n, and n is {self.n}")
        if 1 not in self.k:
            raise SettingsError("k must hold 1: decisions rest on pass@1")
        if self.temperature == 0 and self.n > 1:
            raise SettingsError(f"temperature 0 gives the same try {self.n} times; set n: 1 or raise temperature")
        self.turn(0)

    def turn(self, seed: int) -> Sampling:
        """What the policy is told, with the run's seed."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, seed=seed)

    @property
    def looks(self) -> tuple[int, ...]:
        """Tries per task at each look: n, then doubled while ``max_n`` allows."""
        sizes = [self.n]
        while sizes[-1] * 2 <= self.max_n:
            sizes.append(sizes[-1] * 2)
        return tuple(sizes)


def count(pool: Pool, tasks: Sequence[Task]) -> tuple[TaskResult, ...]:
    """Passes and errors of every task. An error is neither a pass nor a fail."""
    results = []
    for task in tasks:
        outcomes = [pool.verdicts[key].outcome for key in pool.tries(task.key)]
        results.append(
            TaskResult(
                task=task.key, family=task.family, samples=len(outcomes), passes=outcomes.count("pass"), errors=outcomes.count("error")
            )
        )
    return tuple(results)


def succeeded(seen: Measurements, first: Pool, later: Collection[str], seed: int, least: int = 1) -> Measurements:
    """``seen`` with how often the tasks of ``first`` are solved, in tries whose number was fixed beforehand; other tries of ``later`` tasks passed.

    A task with fewer than ``least`` judged tries is left out; nothing is measured where none is left.
    """
    results = [one for one in count(first, list(first.tasks.values())) if one.samples - one.errors >= least]
    if not results:
        return seen
    n = min(one.samples - one.errors for one in results)
    never = {one.task for one in results if not one.passes}
    scores: dict[str, set[float]] = defaultdict(set)
    for key in first.wanted:
        if (score := first.verdicts[key].score) is not None:
            scores[key.task].add(score)
    return msgspec.structs.replace(
        seen, samples_per_task=n, tasks_sampled=len(results), tasks_solved=len(results) - len(never),
        tasks_mixed=sum(0 < one.passes < one.samples - one.errors for one in results), pass_n=pass_interval(results, n, 0.95, seed),
        solved_later=len(never.intersection(later)), rewarded_in_part=sum(len(scores[task]) > 1 for task in never),
    )  # fmt: skip


def evaluate(pool: Pool, tasks: Sequence[Task], model: str, split: str, settings: EvaluationSettings, seed: int) -> Evaluation:
    """Turn judged tries into numbers. Bootstrap over families, with ``seed``."""
    results = count(pool, tasks)
    costs = [pool.trajectories[key].cost for key in pool.wanted]
    return Evaluation(
        model=model,
        split=split,
        sampling=msgspec.to_builtins(settings.turn(seed)),
        tasks=results,
        pass_at={k: pass_interval(results, k, 0.95, seed) for k in settings.k},
        cost=Cost(
            prompt_tokens=sum(cost.prompt_tokens for cost in costs),
            sampled_tokens=sum(cost.sampled_tokens for cost in costs),
            seconds=round(sum(cost.seconds for cost in costs), 3),
            turns=sum(cost.turns for cost in costs),
        ),
        errors=sum(result.errors for result in results),
        played=played(pool),
    )


def played(pool: Pool) -> str:
    """What agent made the tries, in words; "" where each is one try of one model. A chooser that also grades is called that."""
    tries = [pool.trajectories[key] for key in pool.wanted]
    if (choice := next((one.choice for one in tries if one.choice is not None), None)) is not None:
        said = f"each try is one of {choice.wanted}, chosen by {choice.by}"
        return said + (f": pass@1 here is pass@{choice.wanted} of single tries" if choice.grader else "")
    makers = {one.key.model: one.agent for one in tries if one.stop != "error"}
    return f"tries made in turn by {', '.join(makers.values())}" if len(makers) > 1 else ""


PARTINGS = 5  # shown


def weigh(pool: Pool, left_out: Mapping[str, int], seed: int) -> DemonstrationQuality:
    """What the demonstrations in ``pool`` are worth (METHODS: imitation's ceiling is their quality). Bootstrap over families, with ``seed``."""
    results = count(pool, list(pool.tasks.values()))
    turns: dict[str, list[int]] = defaultdict(list)
    followed: dict[tuple[str, tuple[str, ...]], Counter[str]] = defaultdict(Counter)
    for key in pool.wanted:
        trajectory, verdict = pool.trajectories[key], pool.verdicts[key]
        if verdict:
            turns[key.task].append(sum(message.role == "assistant" for message in trajectory.messages))
        if verdict.outcome != "error":
            for step, action in enumerate(trajectory.actions):
                followed[key.task, trajectory.actions[:step]][action] += 1
    several = {task: [one - min(lengths) for one in lengths] for task, lengths in turns.items() if len(lengths) > 1}
    longest = max((max(over) for over in several.values()), default=0)
    by_family: dict[str, list[float]] = defaultdict(list)
    for task, over in several.items():
        by_family[pool.tasks[task].family].append(sum(over) / len(over))
    junctions = {place: ways for place, ways in followed.items() if ways.total() > 1}
    parted = sorted((place for place, ways in junctions.items() if len(ways) > 1), key=lambda place: (-junctions[place].total(), place))
    return DemonstrationQuality(
        count=len(pool.wanted),
        passed=sum(result.passes for result in results),
        errors=sum(result.errors for result in results),
        by=dict(Counter(pool.trajectories[key].agent for key in pool.wanted).most_common()),
        pass_rate=pass_interval(results, 1, 0.95, seed),
        tasks=len(results),
        shown=sum(result.samples > 0 for result in results),
        covered=sum(result.passes > 0 for result in results),
        excess=cluster_bootstrap_mean(by_family, 0.95, seed, span=(0.0, float(longest))),
        longest_excess=longest,
        junctions=len(junctions),
        parted=len(parted),
        partings=tuple(
            Parting(task=task, step=len(before) + 1, ways=tuple(junctions[task, before].most_common()))
            for task, before in parted[:PARTINGS]
        ),
        left_out=dict(left_out),
    )
