"""Where tasks come from: one tagged union, one function."""

from __future__ import annotations

import msgspec

from sharpen.errors import TaskError
from sharpen.records import Task
from sharpen.tasks import jsonl, reasoning_gym, textworld
from sharpen.tasks.base import TaskSet
from sharpen.tasks.jsonl import Jsonl
from sharpen.tasks.reasoning_gym import ReasoningGym
from sharpen.tasks.textworld import TextWorld

TaskSource = TextWorld | ReasoningGym | Jsonl

ROLE = {"demo": "teaching", "train": "teaching", "dev": "deciding", "test": "reporting"}


def load_tasks(source: TaskSource) -> TaskSet:
    """The task set that ``source`` describes, its splits checked for overlap."""
    match source:
        case TextWorld():
            taskset = textworld.load(source)
        case ReasoningGym():
            taskset = reasoning_gym.load(source)
        case Jsonl():
            taskset = jsonl.load(source)
    check_overlap(taskset)
    return taskset


def check_overlap(taskset: TaskSet) -> None:
    """TaskError, with the pair, where a family or the same question is in two of teaching (demo, train), dev and test.

    The question is the prompt's text, case and spacing aside; where there is no prompt, the environment's parameters. Near
    duplicates are not looked for.
    """
    seen: dict[str, Task] = {}
    for task in taskset.tasks:
        for mark in (f"family {task.family!r}", _question(task)):
            other = seen.setdefault(mark, task)
            if ROLE.get(other.split) != ROLE.get(task.split):
                what = mark if mark.startswith("family") else f"the question {mark[:80]!r}"
                raise TaskError(
                    f"task set {taskset.name!r}: {other.key!r} ({other.split}) and {task.key!r} ({task.split}) share {what}; "
                    "give both one family or take one out"
                )


def _question(task: Task) -> str:
    if not task.prompt:
        return msgspec.json.encode(task.params, order="deterministic").decode()
    return " ".join(" ".join(message.content for message in task.prompt).casefold().split())
