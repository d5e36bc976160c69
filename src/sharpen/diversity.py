"""What a round did to how many ways there are: pass@k at large k, distinct solutions and entropy, beside what stood before.

Pure: judged tries of the same tasks in (``sampling.Pool``), a record out; the same seed gives the same numbers. A round that makes likely what went well
often, and forgets what went well rarely, gains pass@1 and loses here (METHODS, Collapse). Every number is a mean over the tasks that both sides can be
measured on, each task counting once, with an interval over families. Tries that broken infrastructure ended are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from msgspec.structs import replace

from sharpen.evaluation import EvaluationSettings
from sharpen.records import Change, Diversity, Evaluation, Facet, Gain, Interval, Record
from sharpen.sampling import Pool
from sharpen.stats import cluster_bootstrap_mean, expected_distinct, expected_entropy, pass_at_k

WRITTEN = "diversity.json"
LARGE = 64  # tries of each task: METHODS asks for as many before it says that nothing collapsed
MOST = 0.9  # of the tasks have k tries: an error costs its task, or all the others a try
NEVER = "no task has a try on both sides"
ONCE = "no task was passed twice on both sides"
UNITS: dict[Facet, tuple[float, Literal["share", "solutions", "nats"]]] = {
    "pass@k": (0.0, "share"),
    "distinct": (1.0, "solutions"),
    "solutions": (0.0, "nats"),
    "tokens": (0.0, "nats"),
}
"""Of each facet the least that there can be, and what it is counted in."""


class Drops(Record, frozen=True, kw_only=True):
    """The largest losses that are let pass: ``pass_k`` of pass@k, of which it is a difference; as shares of what there was, ``distinct`` of the solutions
    beyond a task's first, and of their entropy, ``entropy`` of that of the tokens."""

    pass_k: float = 0.0
    distinct: float = 0.5
    entropy: float = 0.9


@dataclass
class _Tries:
    """What was done at one task: whether each try passed, the ``passes`` by their actions, how improbable the ``tokens`` were where that is known, and
    whether tries were ``chosen`` from several."""

    passed: list[bool] = field(default_factory=list)
    passes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    nats: float = 0.0
    tokens: int = 0
    chosen: bool = False


def diversity(
    before: Pool,
    after: Pool,
    names: tuple[str, str],
    settings: EvaluationSettings,
    level: float,
    drops: Drops | None = None,
    seed: int = 0,
) -> Diversity:
    """``after`` beside ``before``, both sampled as ``settings`` say. ``names`` are what they are called, ``level`` is that of the intervals that decide.

    - ``pass@k``: the largest k for which nine tasks in ten have tries on both sides. Of a task that one side tried more often the first tries count, as many
      as the other's: of rates near 1, more tries on one side alone make an interval that is too sure.
    - ``distinct``: different solutions (sequences of actions) in as many passing tries of both sides, so that whoever passes more often is not
      credited for it (rarefaction, ``stats.expected_distinct``). On the tasks that both passed twice or more: of one pass there is nothing to tell.
    - ``solutions``: the entropy over these sequences, as far as so many passes can see it (``stats.expected_entropy``).
    - ``tokens``: minus the log-probability of the sampled tokens, over their number: its expectation is the policy's entropy a token at the temperature
      that ``settings`` name. It falls with every honest gain too (2505.22617), so it is a collapse only where next to nothing is left.
    """
    drops = drops or Drops()
    was, now = _see(before), _see(after)
    families = {task: after.tasks[task].family for task in now if task in was}
    tries = {task: min(len(was[task].passed), len(now[task].passed)) for task in families}
    passes = {task: m for task in families if (m := min(was[task].passes.total(), now[task].passes.total())) > 1}
    k = sorted(tries.values())[int((1 - MOST) * len(tries) + 1e-9)] if tries else 0
    many = f"{sum(passes.values()) / len(passes):.1f} passing tries" if passes else "as many passing tries"
    temperature = f"temperature {settings.temperature:g}" + (f", top-p {settings.top_p:g}" if settings.top_p < 1 else "")

    def change(
        facet: Facet, words: str, at: Mapping[str, int], value: Callable[[_Tries, int], float], drop: float, why: str, most: float = 0.0
    ) -> Change:
        pairs = {task: (value(was[task], m), value(now[task], m)) for task, m in at.items()}
        return _change(facet, words, pairs, families, max(most, *chain([0.0], *pairs.values())), drop, level, seed, why if tries else NEVER)

    changes = (
        change(
            "pass@k", f"pass@{k}" if k > 1 else "pass@k", {task: n for task, n in tries.items() if n >= k > 1},
            lambda one, n: pass_at_k(n, sum(one.passed[:n]), k), drops.pass_k, "one try of a task: pass@k is pass@1", most=1.0,
        ),
        change(
            "distinct", f"distinct solutions in {many}", passes,
            lambda one, m: expected_distinct(list(one.passes.values()), m), drops.distinct, ONCE, most=max(passes.values(), default=1),
        ),
        change(
            "solutions", f"entropy of solutions, as far as {many} show it", passes,
            lambda one, m: expected_entropy(list(one.passes.values()), m), drops.distinct, ONCE,
            most=sum(1 / j for j in range(1, max(passes.values(), default=1))),
        ),
        change(
            "tokens", f"entropy a token at {temperature}", {task: 1 for task in families if was[task].tokens and now[task].tokens},
            lambda one, _: one.nats / one.tokens, drops.entropy, _untold(was, now), most=1.0,
        ),
    )  # fmt: skip
    few = f"collapse shows at large k, and k is {k}: ladder.collapse_n: {LARGE} makes more tries of what is to be kept, and of what stood"
    return Diversity(base=names[0], other=names[1], changes=changes, notes=(few,) if k < LARGE else ())


def off_task(base: Evaluation, other: Evaluation, gain: Gain, drop: float) -> Change:
    """The off-task panel as one facet more: ``other`` beside ``base``, whose difference in pass@1 is ``gain``."""
    since = f"off-task pass@1, since {gain.base.removeprefix('rungs/')}"
    d = gain.deciding
    spare = replace(d, value=d.value + drop, low=d.low + drop, high=d.high + drop)
    return Change(
        facet="off-task", words=since, unit="share", before=base.pass_at[1], after=other.pass_at[1], printed=gain.printed,
        deciding=d, spare=spare, why="" if gain.printed.n else NEVER,
    )  # fmt: skip


def _see(pool: Pool) -> dict[str, _Tries]:
    """Every task that has a try which nothing broke."""
    found: dict[str, _Tries] = defaultdict(_Tries)
    for key in pool.wanted:
        trajectory, verdict = pool.trajectories[key], pool.verdicts[key]
        if verdict.outcome == "error" or trajectory.stop in ("error", "cancelled"):
            continue
        one = found[key.task]
        one.passed.append(bool(verdict))
        if verdict:
            one.passes[trajectory.actions] += 1
        turns = [*trajectory.turns, *(turn for thread in trajectory.threads for turn in thread.turns)]
        if trajectory.choice is not None:
            one.chosen = True
        elif all(turn.logprob is not None for turn in turns):
            one.nats -= sum(turn.logprob or 0.0 for turn in turns)
            one.tokens += sum(len(turn.output or ()) for turn in turns)
    return dict(found)


def _untold(*sides: Mapping[str, _Tries]) -> str:
    if any(one.chosen for side in sides for one in side.values()):
        return "each try is one of several, so its tokens are not drawn as the policy draws them"
    return "the engine reports no log-probabilities"


def _change(
    facet: Facet,
    words: str,
    pairs: Mapping[str, tuple[float, float]],
    families: Mapping[str, str],
    most: float,
    drop: float,
    level: float,
    seed: int,
    why: str,
) -> Change:
    """(before, after) of each task as intervals, ``most`` being the largest value there can be."""
    least, unit = UNITS[facet]

    def interval(value: Callable[[float, float], float], span: tuple[float, float], level: float = 0.95) -> Interval:
        values: dict[str, list[float]] = defaultdict(list)
        for task, pair in pairs.items():
            values[families[task]].append(value(*pair))
        return cluster_bootstrap_mean(values, level, seed, span=span)

    def less(part: float, off: float, level: float) -> Interval:
        """``after`` less ``part`` of ``before``, both counted from the least, and plus ``off``."""
        span = (off - part * (most - least), off + most - least)
        return interval(lambda before, after: off + (after - least) - part * (before - least), span, level)

    return Change(
        facet=facet,
        words=words,
        unit=unit,
        before=interval(lambda before, _: before, (least, most)),
        after=interval(lambda _, after: after, (least, most)),
        printed=less(1.0, 0.0, 0.95),
        deciding=less(1.0, 0.0, level),
        spare=less(1.0, drop, level) if unit == "share" else less(1.0 - drop, 0.0, level),
        why="" if pairs else why,
    )
