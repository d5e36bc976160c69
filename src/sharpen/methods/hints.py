"""Hints for tasks that the model never solved: show the solution, sample, verify, strip the hint. This file is the algorithm.

STaR's rationalization (Zelikman et al. 2022, 2203.14465, section 3.2): where no try passes, sample again with the solution behind the task, keep what
passes, and train on it as if nobody had shown anything. It reaches tasks that self-training cannot. What it costs: more false positives, since a model that
was told the answer reaches it by wrong ways too, so hinted rows are marked, few, and to be held to the same purity as all others.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from sharpen import loop
from sharpen.agents.base import without_shots
from sharpen.agents.checks import played
from sharpen.budget import Uniform
from sharpen.chat.base import said
from sharpen.errors import Refused, SharpenError
from sharpen.methods.base import HERE, Bench, Cast, Hints, Prompted, Sourced
from sharpen.records import LeftOut, Selection, Task, Trajectory
from sharpen.sampling import HINTS, Pool
from sharpen.selection import among, merge, select
from sharpen.tasks.base import TaskSet
from sharpen.terms import EXPERT, settled, vouch

SPEAKS_OF_IT = "it speaks of the hint, which it will not see"
OVER_SHARE = "over hints.share"


@dataclass(frozen=True)
class Hinted:
    """What hints brought. ``pool`` holds the tries, without the hint: in no rate, since they are not what the model does.

    ``survivors`` are those that train, as ``selection`` keeps them. Of ``unsolved`` tasks ``shown`` came with a solution to show.
    """

    pool: Pool
    selection: Selection
    survivors: tuple[Sourced, ...]
    unsolved: int
    shown: int


def hinted(bench: Bench, rung: str, standing: Prompted, pool: Pool, beside: Sequence[Sourced], settings: Hints) -> Hinted:
    """Tries with a hint at those tasks of ``pool``, a round's tries, that nothing in it or in ``beside`` solved: the stage ``rung/hints``.

    ``beside`` are the model's other tries that train (this round's, and earlier rounds' where they are mixed back), which ``settings.share`` is held against.
    Refused where an outside program writes the prompts; Unsettled where the terms of the tasks' solutions do not let them train.
    """
    if bench.harness is not None:
        raise Refused(f"{rung}: an outside program writes its own prompts, so no hint can be put behind the task")
    tasks = [task for task in unsolved(pool) if task.key not in {one.key.task for _, one in beside}]
    solutions = showable(bench.tasks, tasks)
    if solutions:
        vouch(settled(EXPERT, bench.permissions), bench.base, "solutions that are shown as hints")
    tries = _sample(bench, rung, standing, [task for task in tasks if task.key in solutions], solutions, settings)

    plain = {key: without_shots(tries.trajectories[key], standing.shots) for key in tries.wanted if tries.verdicts[key]}
    spoken = [key for key, one in plain.items() if speaks_of(tries.tasks[key.task], one, solutions[key.task], settings.wording)]
    silent = replace(tries, wanted=tuple(key for key in tries.wanted if key not in set(spoken)))
    one_each = msgspec.structs.replace(bench.selection, weighting="log_pass_rate")  # the more tasks, the better: it is one way in
    chosen = select(silent, one_each, bench.seed)
    drawn = [key.task for key in chosen.kept]
    most = len(drawn) if settings.share == 1 or (settings.share and not beside) else _most(settings.share, [one for _, one in beside])
    random.Random(f"{bench.seed}/hints").shuffle(drawn)
    chosen = among(chosen, set(drawn[:most]), OVER_SHARE)
    left = [LeftOut(key=key, reason=SPEAKS_OF_IT) for key in spoken]
    told = tuple(LeftOut(key=one.key, reason=f"with a hint: {one.reason}") for one in (*chosen.left_out, *left))
    selection = merge([msgspec.structs.replace(chosen, left_out=told, settings=msgspec.to_builtins(settings))])

    passed = {key.task for key in plain}
    bench.say(
        f"{rung.removeprefix('rungs/')}: hints: {len(tasks)} tasks were never solved, {len(solutions)} of them have a solution to show; with it "
        f"{len(passed)} are solved, and {len(selection.kept)} tries train"
        + (f" (at most {most}: hints.share)" if most < len(drawn) else "")
    )
    survivors = tuple(("hinted", plain[key]) for key in selection.kept)
    return Hinted(tries, selection, survivors, len(tasks), len(solutions))


def hintable(bench: Bench, pool: Pool, solved: Collection[str] = ()) -> int:
    """How many tasks of ``pool``, none of those that other tries ``solved``, never passed and have something to show."""
    never = [task for task in unsolved(pool) if task.key not in solved]
    return 0 if bench.harness is not None else len(showable(bench.tasks, never))


def unsolved(pool: Pool) -> list[Task]:
    """The tasks that were tried and never passed. One whose tries all ended in an error was not tried."""
    outcomes = {key: {pool.verdicts[one].outcome for one in pool.tries(key)} for key in pool.tasks}
    return [task for key, task in pool.tasks.items() if "fail" in outcomes[key] and "pass" not in outcomes[key]]


def showable(of: TaskSet, tasks: Sequence[Task]) -> dict[str, str]:
    """What there is to show of each task, by its key: the expert's turns, a line each, else a reference that passes where it is given as the answer.

    So neither tests nor rubrics, which say how a task is judged, are ever shown. Tasks without are left out.
    """
    return {task.key: text for task in tasks if (text := loop.run(_solution(of, task)))}


async def _solution(of: TaskSet, task: Task) -> str:
    try:
        turns = of.environment.expert(task)
    except SharpenError:
        return ""  # a user's expert that raises
    if turns is not None:
        return "\n".join(map(said, turns)).strip()
    if not isinstance(task.reference, str | int | float) or of.verifier is None:
        return ""
    text = str(task.reference)
    return text if await played(of, task, (text,), 60.0) else ""


def _sample(bench: Bench, rung: str, standing: Prompted, tasks: list[Task], solutions: dict[str, str], settings: Hints) -> Pool:
    """Single tries of the model that stands, whatever agent the run's own is."""
    if not tasks:
        return Pool({}, ())
    hints = {task.key: settings.wording.format_map({HERE: solutions[task.key]}) for task in tasks}
    n = settings.n if bench.sampling.temperature > 0 else 1  # greedy tries are all the same
    sampling = msgspec.structs.replace(bench.sampling, n=n, budget=Uniform())
    return bench.sample(f"{rung}/{HINTS}", standing, tasks, sampling, cast=Cast(hints=hints))


def _most(share: float, beside: Sequence[Trajectory]) -> int:
    """How many hinted tries may train beside those, some of which may be hinted ones of earlier rounds."""
    before = sum(one.hint is not None for one in beside)
    return max(math.floor(share / (1 - share) * (len(beside) - before) + 1e-9) - before, 0)


# ---------------------------------------------------------------- what must not be learned

_GIVEN = "given|provided|shown"
_PHRASES = re.compile(
    rf" (?:hints?|the reference|(?:reference|gold|{_GIVEN}) (?:answer|solution)s?|(?:answer|solution)s? (?:that )?(?:i was |you |was |were )(?:gave|{_GIVEN})) "
)
STRETCH = 5  # words in a row that are taken from the wording


def speaks_of(task: Task, trajectory: Trajectory, solution: str, wording: str) -> bool:
    """Whether a turn speaks of the hint: in one of the usual phrases, or in ``STRETCH`` of ``wording``'s words; thoughts and calls included.

    What the solution, the tools, or anything read before says too is no sign of it. ``trajectory`` is without the hint.
    """
    heard = _words(solution, msgspec.json.encode(trajectory.tools).decode())
    asked = sum(message.role == "assistant" for message in task.prompt)
    for message in trajectory.messages:
        text = _words(message.reasoning or "", said(message))
        if message.role == "assistant":
            asked -= 1
            if asked < 0 and any(found not in heard for found in _found(text, wording)):
                return True
        heard += text
    return False


def _found(text: str, wording: str) -> Iterator[str]:
    yield from _PHRASES.findall(text)
    for part in wording.split(f"{{{HERE}}}"):
        words = _words(part).split()
        stretches = (f" {' '.join(words[at : at + STRETCH])} " for at in range(len(words) - STRETCH + 1))
        yield from (stretch for stretch in stretches if stretch in text)


def _words(*texts: str) -> str:
    """The words alone, in lower case, a space on both sides of each."""
    return " " + " ".join(re.findall(r"[^\W_]+", " ".join(texts).casefold())) + " "
