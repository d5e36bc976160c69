"""What every verifier must show before anything is trained on its word: gold solutions pass, doing nothing fails.

Here and not among the verifiers because the check plays whole episodes.
"""

from __future__ import annotations

from sharpen.agents.recorded import replay
from sharpen.chat.base import said
from sharpen.errors import SharpenError, TaskError
from sharpen.formats.base import RECORDED
from sharpen.records import Message, Record, SampleKey, Task, Trajectory, Verdict
from sharpen.tasks.base import TaskSet
from sharpen.verifiers.run import judge

NOOPS = {"empty": "", "off-task": "I would rather talk about the weather."}


class Checks(Record, frozen=True, kw_only=True):
    """What the checks found.

    ``gold_passes`` is None where no task has a gold solution; ``noop_fails`` None where no task was tried. ``example`` tells the
    first thing that went wrong, in one line. An error verdict satisfies neither check.
    """

    gold_tried: int
    gold_passed: int
    noop_tried: int
    noop_failed: int
    gold_passes: bool | None
    noop_fails: bool | None
    example: str = ""


async def gold_and_noop(taskset: TaskSet, limit: int = 20, timeout_s: float = 60.0) -> Checks:
    """Replay the gold solution, an empty and an off-task answer on up to ``limit`` tasks spread evenly over the set.

    The test split is left alone. TaskError where the set has no verifier. A broken environment counts against the check.
    """
    if taskset.verifier is None:
        raise TaskError(f"task set {taskset.name!r} has no verifier; give it one before checking it")
    tasks = spread(taskset, limit)
    gold: list[bool] = []
    noop: list[bool] = []
    example = ""
    for task in tasks:
        expert = taskset.environment.expert(task)
        if expert is not None:
            verdict = await played(taskset, task, expert, timeout_s)
            gold.append(bool(verdict))
            if not gold[-1]:
                example = example or f"task {task.key!r}: the gold solution {short(expert)} got {word(verdict)}"
        for kind, answer in NOOPS.items():
            verdict = await played(taskset, task, (answer,) * taskset.environment.max_turns, timeout_s)
            noop.append(verdict.outcome == "fail")
            if not noop[-1]:
                example = example or f"task {task.key!r}: an {kind} answer got {word(verdict)}"
    return Checks(
        gold_tried=len(gold),
        gold_passed=sum(gold),
        noop_tried=len(noop),
        noop_failed=sum(noop),
        gold_passes=all(gold) if gold else None,
        noop_fails=all(noop) if noop else None,
        example=example,
    )


async def played(taskset: TaskSet, task: Task, actions: tuple[str | Message, ...], timeout_s: float) -> Verdict:
    """The verdict on one replay."""
    assert taskset.verifier is not None
    return judge(task, await attempt(taskset, task, actions), taskset.verifier, timeout_s)


async def attempt(taskset: TaskSet, task: Task, actions: tuple[str | Message, ...]) -> Trajectory:
    """One replay; an errored trajectory where the environment breaks."""
    try:
        return await replay(task, taskset.environment, actions)
    except SharpenError as error:
        key = SampleKey(model="expert", task=task.key, environment=taskset.environment.name, sampling=RECORDED, index=0)
        return Trajectory(key=key, agent="expert", messages=task.prompt, stop="error", error=str(error))


def spread(taskset: TaskSet, limit: int) -> list[Task]:
    """Up to ``limit`` tasks spread evenly over the set, the test split left alone."""
    tasks = [task for task in taskset.tasks if task.split != "test"]
    return [tasks[index * len(tasks) // limit] for index in range(limit)] if len(tasks) > limit else tasks


def word(verdict: Verdict) -> str:
    """``pass``, or ``fail`` or ``error`` with the reason."""
    return verdict.outcome if verdict else f"{verdict.outcome} ({verdict.reason})"


def short(actions: tuple[str | Message, ...]) -> str:
    """Assistant turns in at most 120 characters."""
    text = repr("; ".join(said(action) for action in actions))
    return text if len(text) <= 120 else f"{text[:120]}..."
