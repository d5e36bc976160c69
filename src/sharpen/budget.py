"""Where tries go: as many at every task, or more where another one is likely to bring something new.

Pure: outcomes in, the next wave out; the same outcomes and seed give the same wave. ``sampling.py`` makes the tries.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Record

if TYPE_CHECKING:
    from sharpen.stats import Floats

LEVEL = 0.95  # of the one-sided bound that sets a task aside
EVEN = 0.5  # a try whose worth the tries before it in its wave have halved waits until they are judged


class Uniform(Record, frozen=True, kw_only=True, tag_field="budget", tag="uniform"):
    """``sampling.n`` tries of every task."""


class Adaptive(Record, frozen=True, kw_only=True, tag_field="budget", tag="adaptive"):
    """A first wave on every task, then waves that go where a token is expected to bring most new survivors.

    As many tries as uniform sampling makes in all (``sampling.n`` times the tasks), or, where ``tokens`` is given, as many as surely fit into so many
    sampled tokens. ``first`` tries of every task come first, and pass rates are reported from these alone: a rate over tries that stopped
    because of what they held is biased. Then a task gets no more once it has ``cap`` distinct successes (default: what the selection keeps of
    one task), ``max_tries`` tries, or no success in so many that its pass rate is under ``hopeless`` at 95 % (0.05 takes 59 tries): that task is
    set aside, with its bound. The number is fixed beforehand, so looking after each wave does not weaken the bound.

    A wave is planned when the one before it has ended, whole and in launch order: a decision on whatever has come back would favour tries that
    end soon. So the engine waits for the last tries of a wave, and ``wave`` should be at least ``sampling.concurrency``; smaller ones
    learn more in between.

    Which successes are kept then depends on the task: ``weighting: mean_pass_rate`` no longer follows the mean pass rate.
    """

    first: Annotated[int, msgspec.Meta(ge=1)] = 4
    wave: Annotated[int, msgspec.Meta(ge=1)] = 64
    max_tries: Annotated[int, msgspec.Meta(ge=1)] = 64
    cap: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    hopeless: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05

    def __post_init__(self) -> None:
        if self.first > self.max_tries:
            raise SettingsError(f"first is {self.first}, over max_tries, {self.max_tries}; lower first or raise max_tries")


Budget = Uniform | Adaptive


class Terms(Record, frozen=True, kw_only=True):
    """What all waves together are held to, None for no limit: ``tries`` and sampled ``tokens`` in all, ``cap`` distinct successes of one task.

    ``most`` is what one try can take, in tokens, at worst.
    """

    tries: int | None = None
    tokens: int | None = None
    cap: int | None = None
    most: int = 1


def terms(budget: Adaptive, n: int, tasks: int, cap: int | None, most: int) -> Terms:
    """The terms of a stage of ``tasks`` tasks. SettingsError, before anything is paid for, where the first wave may not fit into ``tokens``."""
    first = budget.first * tasks
    if budget.tokens is not None and first * most > budget.tokens:
        raise SettingsError(
            f"the first wave, {budget.first} tries of {tasks} tasks, may take {first * most} tokens ({most} each at worst), but sampling.budget.tokens "
            f"is {budget.tokens}; raise it, or lower sampling.budget.first"
        )
    return Terms(
        tries=n * tasks if budget.tokens is None else None, tokens=budget.tokens, cap=cap if budget.cap is None else budget.cap, most=most
    )


class Try(NamedTuple):
    """What planning needs of a finished try. ``solution`` is the same for two successes that count as one."""

    outcome: Literal["pass", "fail", "error"]
    solution: Hashable
    tokens: int


class SetAside(Record, frozen=True, kw_only=True):
    """A task that is given up: no pass in ``tries`` judged tries, so its pass rate is under ``bound`` at ``LEVEL``, one-sided."""

    task: str
    tries: int
    bound: float


class Wave(Record, frozen=True, kw_only=True):
    """The task of each try to make next, in launch order; or, where there are none, why sampling has ended and what was set aside."""

    tasks: tuple[str, ...] = ()
    ended: str = ""
    set_aside: tuple[SetAside, ...] = ()


def next_wave(
    made: Mapping[str, Sequence[Try]],
    budget: Adaptive,
    terms: Terms,
    seed: int,
    known: Mapping[str, Collection[Hashable]] | None = None,
) -> Wave:
    """The wave after the tries ``made`` of each task, in launch order. ``known`` are solutions of each task that train already.

    A try is worth the new survivors that it is expected to bring for each token it costs: the pass rate, from a Beta prior fitted to the first wave
    of all tasks and updated by the task's own tries (an error brings nothing, and counts as a fail here); times the chance that the success
    is new; times the chance that the tries before it in the wave leave the cap unreached; over the task's mean tokens a try.

    What is left of ``terms`` only cuts a wave short, so a larger budget makes the same tries first.
    """
    if not made:
        return Wave(ended="there are no tasks")
    if not any(made.values()):
        return Wave(tasks=tuple(made) * budget.first)
    order = list(made)
    random.Random(seed).shuffle(order)
    tasks = {task: _Known.of(made[task], budget.first, (known or {}).get(task, ())) for task in order}
    aside = tuple(
        SetAside(task=task, tries=about.judged, bound=about.bound)
        for task, about in sorted(tasks.items())
        if about.passes == 0 and about.bound < budget.hopeless
    )
    closed = {item.task for item in aside} | {
        task for task, about in tasks.items() if about.tries >= budget.max_tries or (terms.cap is not None and about.fresh >= terms.cap)
    }
    if len(closed) == len(tasks):
        return Wave(ended=f"every task has its successes or its {budget.max_tries} tries, or was set aside", set_aside=aside)

    tries, tokens, size = sum(about.tries for about in tasks.values()), sum(about.tokens for about in tasks.values()), budget.wave
    if terms.tries is not None:
        size = min(size, terms.tries - tries)
        if size < 1:
            return Wave(ended=f"all {terms.tries} tries are made", set_aside=aside)
    if terms.tokens is not None:
        size = min(size, (terms.tokens - tokens) // terms.most)
        if size < max(1, budget.wave // 8):  # ever smaller waves would idle the engine for the last few tries
            return Wave(ended=f"{tokens} of {terms.tokens} tokens are spent, and another wave might not fit", set_aside=aside)

    import numpy as np  # here and below, since whoever only samples uniformly needs neither numpy nor scipy

    ahead = np.arange(float(min(budget.wave, budget.max_tries)))
    worth = _worth(list(tasks.values()), terms.cap, ahead)
    worth[[task in closed for task in order]] = 0.0
    worth[np.array([about.tries for about in tasks.values()])[:, None] + ahead >= budget.max_tries] = 0.0
    worth[worth < EVEN * worth[:, :1]] = 0.0
    # Where they are worth the same, each task's next before any task's next but one.
    best = np.lexsort((np.tile(ahead, len(order)), -worth.ravel()))
    return Wave(tasks=tuple(order[at // len(ahead)] for at in best[:size] if worth.flat[at] > 0))


class _Known(NamedTuple):
    """What a task's tries say. ``fresh`` counts distinct successes that do not train already, ``seen`` all of them; ``first`` is (passes, judged tries)
    of the first wave."""

    tries: int
    judged: int
    passes: int
    fresh: int
    seen: int
    old: int
    tokens: int
    first: tuple[int, int]

    @classmethod
    def of(cls, made: Sequence[Try], first: int, known: Collection[Hashable]) -> _Known:
        judged = [try_ for try_ in made if try_.outcome != "error"]
        found = {try_.solution for try_ in judged if try_.outcome == "pass"}
        early = [try_.outcome for try_ in made[:first] if try_.outcome != "error"]
        return cls(
            tries=len(made),
            judged=len(judged),
            passes=sum(try_.outcome == "pass" for try_ in judged),
            fresh=len(found.difference(known)),
            seen=len(found.union(known)),
            old=len(set(known)),
            tokens=sum(try_.tokens for try_ in made),
            first=(early.count("pass"), len(early)),
        )

    @property
    def bound(self) -> float:
        """The upper bound of the pass rate."""
        from sharpen.stats import clopper_pearson

        return clopper_pearson(self.passes, self.judged, LEVEL, "upper").high


def _worth(tasks: Sequence[_Known], cap: int | None, ahead: Floats) -> Floats:
    """New survivors expected, for each token, of a task's next try and of those after it: shape (tasks, ahead), falling along ``ahead``."""
    import numpy as np

    from sharpen.stats import beta_prior, chance_of_new

    a, b = beta_prior([task.first for task in tasks if task.first[1]])
    tries, passes, fresh, tokens = (
        np.array([[getattr(task, name)] for task in tasks], dtype=float) for name in ("tries", "passes", "fresh", "tokens")
    )
    # How many new survivors the wave has brought a task so far: j of them, with what chance. A solution that trains already counts as a success more.
    j = np.arange(len(ahead) if cap is None else min(cap, len(ahead)))
    new = chance_of_new([(task.passes + task.old, task.seen) for task in tasks], np.tile(j.astype(float), (len(tasks), 1)))
    left = np.inf if cap is None else cap - fresh
    reached = np.zeros(new.shape)
    reached[:, 0] = 1.0
    worth = np.empty((len(tasks), len(ahead)))
    for at in range(len(ahead)):
        brings = reached * np.where(j < left, (a + passes + j) / (a + b + tries + at) * new, 0.0)
        worth[:, at] = brings.sum(axis=1)
        reached -= brings
        reached[:, 1:] += brings[:, :-1]
    # A task's own mean cost, drawn towards the mean of all tasks by one try's weight.
    mean = tokens.sum() / tries.sum() or 1.0
    return np.asarray(worth / ((tokens + mean) / (tries + 1)))
