"""Tasks from recorded traces: what each was asked becomes a task, and what was done a demonstration of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Literal

import msgspec

from sharpen.environments.single_turn import SingleTurnSettings
from sharpen.errors import TaskError
from sharpen.formats.load import read
from sharpen.records import Message, Task, Trajectory
from sharpen.store.files import digest
from sharpen.tasks.base import Recorded, TaskSet
from sharpen.tasks.data_file import OwnData, bind, verifier_of
from sharpen.tasks.overlap import question
from sharpen.tasks.recorded import ELSEWHERE, opening, put_under


class Traces(OwnData, frozen=True, kw_only=True, tag_field="source", tag="traces"):
    """Traces in any format that ``sharpen import`` reads: a file, or a folder of files.

    ``ask: first`` asks what stands before the first assistant turn and lets the environment answer from there on; ``last`` asks for the last
    assistant turn alone, everything before it as it was recorded, for traces of tools that are no longer there. Traces that ask the same are
    tries of one task. They are what somebody did, not what is right: the verifier judges them as it judges the model. ``gold`` says that they
    are right: their last answer is their task's reference, and rejection sampling is refused where the verifier fails one. ``format``,
    ``strict`` and ``replay`` as for ``Demonstrations``.
    """

    path: str
    format: str | None = None
    strict: bool = True
    replay: bool = True
    ask: Literal["first", "last"] = "first"
    gold: bool = False


def load(settings: Traces) -> TaskSet:
    """A task for each different question, split, with the traces of the demo split's as its demonstrations.

    TaskError where a trace has more assistant turns than the environment takes, and where two gold traces of one task end differently.
    """
    verifier = verifier_of(settings)
    reading = read(settings.path, settings.format, strict=settings.strict)
    tries: dict[str, list[Trajectory]] = defaultdict(list)
    prompts: dict[str, tuple[Message, ...]] = {}
    for number, trace in enumerate(reading, 1):
        answers = [at for at, message in enumerate(trace.messages) if message.role == "assistant"]
        if not answers:
            raise TaskError(f"{settings.path}, trace {number}: no assistant turn, so there is nothing to ask for; take it out")
        asked = opening(trace) if settings.ask == "first" else trace.messages[: answers[-1]]
        if settings.ask == "first" and len(answers) > 1 and isinstance(settings.environment, SingleTurnSettings):
            raise TaskError(
                f"{settings.path}, trace {number}: {len(answers)} assistant turns, but a single turn takes one; "
                "name the environment that it was played in, or ask: last"
            )
        # Not by the file's own names: other libraries give every try of a question a name of its own.
        key = digest(asked)[:12]
        prompts.setdefault(key, asked)
        tries[key].append(trace)
    taskset = bind(settings, settings.path, [_task(settings, key, prompts[key], tries[key]) for key in tries], verifier)
    shown = put_under((task, trace) for task in taskset.tasks if task.split == "demo" for trace in tries[task.key])
    for task in taskset.tasks:
        if verifier is not None and (problem := verifier.problem(task)):
            how = "" if settings.gold else " (traces give tasks a reference with gold: true)"
            raise TaskError(f"{settings.path}: task {task.key!r} {problem}{how}")
    left_out = Counter(reading.imported.left_out)
    for task in taskset.tasks:
        if task.split != "demo":
            left_out[ELSEWHERE.format(split=task.split)] += len(tries[task.key])
    return replace(taskset, recorded=Recorded(shown, dict(left_out), settings.replay))


def _task(settings: Traces, key: str, prompt: tuple[Message, ...], tries: list[Trajectory]) -> Task:
    # Those that ask the same but for case and spacing go to one split.
    family = digest(question(Task(key="", family="", prompt=prompt)))[:12]
    if not settings.gold:
        return Task(key=key, family=family, prompt=prompt)
    answers = [[message for message in trace.messages[len(prompt) :] if message.role == "assistant"] for trace in tries]
    ends = sorted({turns[-1].content.strip() for turns in answers})
    if len(ends) > 1:
        raise TaskError(
            f"{settings.path}: gold traces of task {prompt[-1].content[:60]!r} end differently: {ends[0][:60]!r}, {ends[1][:60]!r}; keep one"
        )
    return Task(key=key, family=family, prompt=prompt, params={"gold": msgspec.to_builtins(answers[0])}, reference=ends[0])
