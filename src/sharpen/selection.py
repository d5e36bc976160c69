"""From verdicts to a training set: which tries train, and for every other one, why not."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from sharpen.chat.base import Template
from sharpen.chat.masks import own_ids, without_ids
from sharpen.chat.masks import rows as make_rows
from sharpen.errors import SettingsError
from sharpen.records import LeftOut, Record, Row, RowCounts, SampleKey, Selection, Trajectory
from sharpen.sampling import Pool
from sharpen.store.segments import order
from sharpen.verifiers.behaviour import Rules

# Why rows were tokenised from text although what is sampled is trained as it was sampled.
ONLY_TEXT = "only their text exists"
TAUGHT = "a teacher's, which read another prompt than the student will"
HINTED = "sampled with the reference shown, which training leaves out"
WITHOUT_SHOTS = "sampled with few-shot examples before the task, which training leaves out"
OTHER_IDS = "the token ids are not this tokenizer's, or not there for every turn"

_TEXT = {"demonstration": ONLY_TEXT, "taught": TAUGHT}

Weighting = Literal["capped", "log_pass_rate", "mean_pass_rate"]


class SelectionSettings(Record, frozen=True, kw_only=True):
    """Which passing tries train. The cap is a choice of objective, not tidying (METHODS: "The cap is a choice of objective").

    ``weighting``:

    - ``capped``: up to ``cap`` passes a task (default 2, as for agents in SWE-Gym), drawn at random. Between the two below: easy tasks
      cannot flood the set, hard ones count more than their pass rate.
    - ``log_pass_rate``: one pass a solved task, drawn at random. In expectation its gradient follows the sum over j <= n of
      pass@j / j, which tends to log p plus a constant as n grows: every task pulls alike, however rarely it is solved.
    - ``mean_pass_rate``: every pass. At the sampling policy, T = 1 and without top-p, its gradient is that of the mean pass rate:
      the policy gradient with reward in {0, 1} and no baseline. Easy tasks weigh most.

    ``shortest_first`` takes the passes with the fewest turns instead of a random draw, and ``dedup`` leaves out a pass whose sequence of
    actions another kept pass of the task has: both bend the objectives above towards short, and towards rare, solutions.

    ``short_share``, in [0, 1], mixes short and long traces: on that share of the tasks, drawn at random, passes are taken shortest first, on the others
    longest first, by what the model says. Small students learn better from the mixture than from long traces alone, or short ones (2502.12143).

    ``behaviour`` leaves out passes that break a rule of it, such as ``{failed_again: 0}``: known faults that are not to be learned from.
    What counts as a success stays the verifier's word.
    """

    weighting: Weighting = "capped"
    cap: int = 2
    shortest_first: bool = False
    short_share: float | None = None
    dedup: bool = True
    behaviour: Rules | None = None

    def __post_init__(self) -> None:
        if self.short_share is not None:
            if not 0 <= self.short_share <= 1:
                raise SettingsError(f"short_share is {self.short_share}, but is a share of the tasks: 0 to 1")
            if self.shortest_first or self.limit is None:
                other = "shortest_first is set" if self.shortest_first else f"weighting {self.weighting} keeps every pass"
                raise SettingsError(f"short_share says which passes are taken, but {other}; leave out one of the two")
        if self.cap < 1:
            raise SettingsError(f"cap is {self.cap}, but must be at least 1")

    @property
    def limit(self) -> int | None:
        """Passes kept for one task; None for all."""
        return {"capped": self.cap, "log_pass_rate": 1, "mean_pass_rate": None}[self.weighting]


def select(pool: Pool, settings: SelectionSettings, seed: int, known: Collection[tuple[str, tuple[str, ...]]] = ()) -> Selection:
    """Keep only what passed, then apply duplicates and the cap, task by task.

    ``known`` are (task, actions) that train already, from rounds before. Every try that is not kept is in ``left_out`` with its
    reason: what the verifier or the stop said, ``duplicate``, ``known from an earlier round``, ``over the cap``, or the rule on behaviour that it breaks.
    """
    kept: list[SampleKey] = []
    left: list[LeftOut] = []
    by_task: dict[str, list[SampleKey]] = defaultdict(list)
    for key in sorted(pool.wanted, key=order):
        verdict = pool.verdicts[key]
        if verdict:
            by_task[key.task].append(key)
        else:
            left.append(LeftOut(key=key, reason=_why_not(pool.trajectories[key], verdict.outcome)))
    for task, passes in sorted(by_task.items()):
        random.Random(f"{seed}/{task}").shuffle(passes)
        if settings.shortest_first:
            passes.sort(key=lambda key: pool.trajectories[key].cost.turns)
        elif settings.short_share is not None:
            short = random.Random(f"{seed}/{task}/short").random() < settings.short_share
            passes.sort(key=lambda key: _length(pool.trajectories[key]), reverse=not short)
        seen: set[tuple[str, ...]] = set()
        chosen = 0
        for key in passes:
            actions = pool.trajectories[key].actions
            if settings.behaviour is not None and (broken := settings.behaviour.broken(pool.trajectories[key])):
                left.append(LeftOut(key=key, reason=f"behaviour: {broken}"))
            elif settings.dedup and (task, actions) in known:
                left.append(LeftOut(key=key, reason="known from an earlier round"))
            elif settings.dedup and actions in seen:
                left.append(LeftOut(key=key, reason="duplicate"))
            elif settings.limit is not None and chosen >= settings.limit:
                left.append(LeftOut(key=key, reason="over the cap"))
            else:
                seen.add(actions)
                kept.append(key)
                chosen += 1
    return _selection(kept, left, msgspec.to_builtins(settings))


def ignore_verdicts(pool: Pool, like: Selection, seed: int) -> Selection:
    """The control's choice: for every task as many tries as ``like`` keeps, drawn at random with the verdicts ignored.

    Tries that ended in an error are no behaviour of the policy, and are never drawn. Of an adaptive budget only the first wave is drawn from: tries that
    went on until they passed hold more passes than the policy's tries do.
    """
    share, fixed = Counter(key.task for key in like.kept), pool.first_wave
    kept: list[SampleKey] = []
    for task in sorted(share):
        tries = [key for key in fixed.tries(task) if pool.trajectories[key].stop != "error" and pool.trajectories[key].turns]
        tries.sort(key=order)
        kept += random.Random(f"{seed}/control/{task}").sample(tries, min(share[task], len(tries)))
    left = [LeftOut(key=key, reason="not drawn") for key in sorted(pool.wanted, key=order) if key not in set(kept)]
    return _selection(kept, left, {"control": "as many tries per task, verdict ignored"})


def build_rows(
    selection: Selection, trajectories: Iterable[tuple[str, Trajectory]], template: Template, max_length: int
) -> tuple[tuple[Row, ...], Selection]:
    """Rows for the chosen ``(source, trajectory)`` pairs, and the selection with those moved out whose mask could not be proved."""
    rows: list[Row] = []
    dropped: list[LeftOut] = []
    because = Counter[str]()
    split = read_again = 0
    for source, trajectory in trajectories:
        source = source if trajectory.hint is None else "hinted"  # also where an earlier round is mixed back
        made, problem = rows_of(trajectory, template, source, max_length)
        rows += made
        if problem is not None:
            dropped.append(LeftOut(key=trajectory.key, reason=problem))
        elif made[0].origin == "rendered":
            text = OTHER_IDS if trajectory.turns else _TEXT.get(source, WITHOUT_SHOTS)
            because[text if trajectory.hint is None else HINTED] += len(made)
        split += len(made) > 1
        read_again += sum(label == -100 for row in made[1:] for label in row.labels)
    gone = {item.key for item in dropped}
    kept = [key for key in selection.kept if key not in gone]
    counts = RowCounts(
        sampled=sum(row.origin == "sampled" for row in rows),
        rendered=because.total(),
        split=split,
        dropped=len(dropped),
        tokens=sum(len(row.input_ids) for row in rows),
        trained=sum(label != -100 for row in rows for label in row.labels),
        read_again=read_again,
        rendered_because=dict(because.most_common()),
        by=dict(Counter(row.maker.name if row.maker is not None else row.key.model for row in rows).most_common()),
        sources=dict(Counter(row.source for row in rows).most_common()),
    )
    proved = _selection(kept, [*selection.left_out, *dropped], selection.settings)
    return tuple(rows), replace(proved, rows=counts, banners=selection.banners)


def rows_of(trajectory: Trajectory, template: Template, source: str, max_length: int) -> tuple[list[Row], str | None]:
    """The rows of one try, of its sampled ids where these are the tokenizer's; or none and why."""
    own = trajectory if own_ids(trajectory, template) else without_ids(trajectory)
    return make_rows(own, template, source, max_length)


def merge(parts: Sequence[Selection]) -> Selection:
    """Several selections (demonstrations, this round, earlier rounds) as one."""
    made = _selection([key for part in parts for key in part.kept], [item for part in parts for item in part.left_out], parts[-1].settings)
    return replace(made, banners=tuple(dict.fromkeys(banner for part in parts for banner in part.banners)))


def among(selection: Selection, tasks: Collection[str], reason: str) -> Selection:
    """``selection`` without what it keeps of other tasks than ``tasks``, which is left out for ``reason``."""
    gone = [LeftOut(key=key, reason=reason) for key in selection.kept if key.task not in tasks]
    kept = [key for key in selection.kept if key.task in tasks]
    return replace(_selection(kept, [*selection.left_out, *gone], selection.settings), banners=selection.banners)


def _length(trajectory: Trajectory) -> int:
    """Characters that the model said, thoughts included."""
    spoken = [message for message in trajectory.messages if message.role == "assistant"]
    return sum(
        len(message.content) + len(message.reasoning or "") + sum(len(call.arguments) for call in message.tool_calls) for message in spoken
    )


def _selection(kept: Sequence[SampleKey], left: Sequence[LeftOut], settings: dict[str, object]) -> Selection:
    counts = Counter(item.reason for item in left)
    counts["kept"] = len(kept)
    return Selection(kept=tuple(sorted(kept, key=order)), left_out=tuple(left), counts=dict(sorted(counts.items())), settings=settings)


def _why_not(trajectory: Trajectory, outcome: str) -> str:
    """A reason that can be counted: texts of verdicts differ from try to try."""
    if outcome == "error":
        return "error: the policy's server or the environment broke" if trajectory.stop == "error" else "error: the verifier broke"
    return f"fail: {trajectory.stop.replace('_', ' ')}" if trajectory.stop != "done" else "fail: judged wrong"
