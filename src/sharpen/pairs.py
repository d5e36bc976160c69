"""Negatives: pairs of tries of one task, one that passed and one that failed, so that fails teach too.

A pair is two rows, made as selection makes them: the ids that were sampled, with labels on what the policy said. What is learnt from them:
``training/preference.py``. A right try that the verifier fails is rejected too: purity is of passes and says nothing of these (``Confusion.false_fails`` does).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import product
from statistics import fmean

import msgspec
from msgspec.structs import replace

from sharpen.agents.base import without_shots
from sharpen.chat.base import Template
from sharpen.errors import SettingsError
from sharpen.records import LeftOut, Message, Pairing, PreferencePair, Record, Row, SampleKey, Selection, Stop, Trajectory, Verdict
from sharpen.sampling import Pool
from sharpen.selection import merge, rows_of
from sharpen.store.segments import order

# The policy was stopped in the middle of a turn, or before one.
CUT_OFF: frozenset[Stop] = frozenset({"token_limit", "overflow", "filtered"})

NO_PAIR = "there is no pair to learn from: no task has both a pass that is kept and a fail to compare it with; make more tries of each task"

# Why a try is in no pair. Reasons are counted, so they are the same for every try.
NO_FAIL = "error: no fail of the policy's"
SAME_PASSED = "the same actions passed in another try"
DUPLICATE = "duplicate"
SEVERAL = "several rows, and a pair compares two"
ALONE = "nothing to compare it with"
SURPLUS = "over per_task"
REJECTED = "rejected: the other one of a pair, which teaches what not to do"


class PairSettings(Record, frozen=True, kw_only=True):
    """Which passes and fails of a task are compared.

    ``per_task`` is the most pairs of one task, so that those with many of both do not flood the set (Iterative RPO, Pang et al., 2404.19733: 10 for 30 tries).

    ``cut_off`` lets a fail be rejected that ended in the middle of a turn: token limit, overflow, a server's filter. Left out by default: it has no end of
    turn and is the longest there is, so that length is learnt, and it may have been right so far (DAPO, 2503.14476, on overlong samples). Running out of
    turns is another thing, since every turn is whole. Where nearly all fails are cut off, raise ``sampling.max_tokens`` first.
    """

    per_task: int = 4
    cut_off: bool = False

    def __post_init__(self) -> None:
        if self.per_task < 1:
            raise SettingsError(f"per_task is {self.per_task}, but must be at least 1")


def pair(
    pool: Pool,
    kept: Collection[SampleKey],
    template: Template,
    max_length: int,
    settings: PairSettings,
    seed: int,
    shots: Sequence[Message] = (),
) -> tuple[tuple[PreferencePair, ...], Pairing]:
    """Up to ``per_task`` pairs of each task, as Iterative RPO makes them: chosen is a pass among ``kept`` (what a selection keeps), rejected a fail of the
    same task in ``pool``.

    An error is no fail, whatever broke, and never rejected. Nor is a fail that does what a pass of the task does (chance tells these apart, or the
    verifier, not the policy) or what another fail does already. Both rows must open with the same tokens: DPO compares answers to one prompt.
    ``shots`` are few-shot examples that stood before the task; rows are made without them. ``max_length`` is in tokens, as in ``build_rows``.

    Each try is in as few pairs as can be, as there; of equally fresh ones the two nearest in length are paired, since DPO sums log-probabilities, and takes
    any difference in length for one in quality (Park et al., 2403.19159). The order in which tries arrived changes nothing.
    """
    wanted = frozenset(kept)
    pairs: list[PreferencePair] = []
    left: list[LeftOut] = []

    def rows(keys: Sequence[SampleKey]) -> Iterator[tuple[Trajectory, Row]]:
        for key in keys:
            trajectory = pool.trajectories[key]
            made, problem = rows_of(without_shots(trajectory, tuple(shots)), template, "sampled", max_length)
            if len(made) == 1:
                yield trajectory, made[0]
            else:
                left.append(LeftOut(key=key, reason=problem or SEVERAL))

    for task in sorted({key.task for key in pool.wanted}):
        tries = sorted(pool.tries(task), key=order)
        passes = [key for key in tries if pool.verdicts[key]]
        passed = {pool.trajectories[key].actions for key in passes} - {()}
        fails = []
        for key in tries:
            if not (verdict := pool.verdicts[key]):
                if why := _why_not(pool.trajectories[key], verdict, passed, settings):
                    left.append(LeftOut(key=key, reason=why))
                else:
                    fails.append(key)
        chosen = [row for _, row in rows([key for key in passes if key in wanted])]
        rejected: dict[object, Row] = {}
        for trajectory, row in rows(fails):
            # Calls that the environment could not read are no actions: then what was said tells tries apart.
            if rejected.setdefault(trajectory.actions or said(row), row) is not row:
                left.append(LeftOut(key=row.key, reason=DUPLICATE))
        made = _match(chosen, list(rejected.values()), settings.per_task, random.Random(f"{seed}/pairs/{task}"))
        pairs += made
        used = {row.key for one in made for row in (one.chosen, one.rejected)}
        reason = SURPLUS if made else ALONE
        left += [LeftOut(key=row.key, reason=reason) for row in (*chosen, *rejected.values()) if row.key not in used]
    counts = Counter(item.reason for item in left)
    counts.update(pairs=len(pairs), tasks=len({one.chosen.key.task for one in pairs}))
    return tuple(pairs), Pairing(
        pairs=tuple((one.chosen.key, one.rejected.key) for one in pairs),
        left_out=tuple(left),
        counts=dict(sorted(counts.items())),
        chosen_tokens=fmean(len(said(one.chosen)) for one in pairs) if pairs else math.nan,
        rejected_tokens=fmean(len(said(one.rejected)) for one in pairs) if pairs else math.nan,
        settings=msgspec.to_builtins(settings),
    )


def preferred(selection: Selection, pairing: Pairing) -> Selection:
    """What trains of ``selection`` where its ``pairing`` does: the chosen ones are kept; rejected ones train too, as what not to do."""
    chosen, rejected = (set(side) for side in zip(*pairing.pairs, strict=True))
    why = {item.key: item.reason for item in pairing.left_out} | dict.fromkeys(rejected, REJECTED)
    left = {item.key: item.reason for item in selection.left_out} | {
        key: why.get(key, ALONE) for key in selection.kept if key not in chosen
    }
    left |= dict.fromkeys(rejected, REJECTED)
    items = tuple(LeftOut(key=key, reason=reason) for key, reason in left.items())
    return merge(
        [replace(selection, kept=tuple(key for key in selection.kept if key in chosen), left_out=items, settings=pairing.settings)]
    )


def said(row: Row) -> tuple[int, ...]:
    """The tokens of ``row`` that have a label."""
    return tuple(label for label in row.labels if label != -100)


def _why_not(trajectory: Trajectory, verdict: Verdict, passed: Collection[tuple[str, ...]], settings: PairSettings) -> str:
    """Why a try that did not pass is not to be rejected; "" where it may be."""
    if verdict.outcome == "error" or trajectory.stop in ("error", "cancelled"):
        return NO_FAIL
    if trajectory.stop in CUT_OFF and not settings.cut_off:
        return f"cut off: {trajectory.stop.replace('_', ' ')}"
    return SAME_PASSED if trajectory.actions in passed else ""


def _match(chosen: list[Row], rejected: list[Row], most: int, draw: random.Random) -> list[PreferencePair]:
    """At most ``most`` pairs of different ones, see ``pair``. ``draw`` decides where all else is equal."""
    draw.shuffle(chosen)
    draw.shuffle(rejected)
    free = [(good, bad) for good, bad in product(chosen, rejected) if _opening(good) == _opening(bad) and said(good) != said(bad)]
    used = Counter[SampleKey]()
    made: list[PreferencePair] = []
    while free and len(made) < most:
        good, bad = min(free, key=lambda two: (used[two[0].key] + used[two[1].key], abs(math.log(len(said(two[0])) / len(said(two[1]))))))
        free.remove((good, bad))
        used.update((good.key, bad.key))
        made.append(PreferencePair(chosen=good, rejected=bad))
    return made


def _opening(row: Row) -> tuple[int, ...]:
    """What was read before the first token that was said."""
    first = next(place for place, label in enumerate(row.labels) if label != -100)
    return row.input_ids[:first]
