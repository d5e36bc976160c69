"""Tasks of somebody's own making: a callable, found by name, that gives a TaskSet."""

from __future__ import annotations

import msgspec

from sharpen import plugins
from sharpen.environments.base import Environment
from sharpen.errors import TaskError, nearest
from sharpen.records import Task
from sharpen.tasks.base import SPLITS, TaskSet
from sharpen.tasks.overlap import check_share
from sharpen.verifiers.base import Verifier


class TaskPlugin(plugins.Plugin, frozen=True, kw_only=True, tag_field="source", tag="plugin"):
    """``name`` (``file.py:name``, ``module:name``, an entry point of ``sharpen.task_sources``) is called with ``settings`` and gives a ``TaskSet``.

    ``max_overlap`` (over 0, up to 1) also looks for near duplicates, as in data files; None, for generators, whose tasks share their
    template's wording, for equal questions and families only.
    """

    max_overlap: float | None = None

    def __post_init__(self) -> None:
        check_share(self.max_overlap)


def load(settings: TaskPlugin) -> TaskSet:
    """What the plugin gives, looked over. SettingsError where it cannot be found or called, TaskError where it raises or its set is unsound."""
    made = plugins.make(settings, "task source", protocol=TaskSet, broken=TaskError)
    return sound(made, f"task source {settings.name!r}")


def sound(made: TaskSet, where: str) -> TaskSet:
    """``made`` again. TaskError, which begins with ``where``, where it is no TaskSet of tasks that a run can use, every one in a split."""
    if not isinstance(made, TaskSet):
        raise TaskError(f"{where}: gave {type(made).__name__}, not a TaskSet")
    if not isinstance(made.tasks, tuple) or not made.tasks:
        raise TaskError(f"{where}: gave {'no tasks' if not made.tasks else f'its tasks as a {type(made.tasks).__name__}; make it a tuple'}")
    for at, task in enumerate(made.tasks, 1):
        if not isinstance(task, Task):
            raise TaskError(f"{where}: task {at} is {type(task).__name__}, not a Task")
        if task.split not in SPLITS:
            raise TaskError(f"{where}: task {task.key!r} has the split {task.split!r}{nearest(task.split, SPLITS)}")
        try:
            msgspec.json.encode(task)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TaskError(f"{where}: task {task.key!r} cannot be written as JSON: {error}") from None
    for thing, protocol in ((made.environment, Environment), (made.verifier, Verifier)):
        if thing is not None and (lacking := plugins.missing(thing, protocol)):
            raise TaskError(f"{where}: {type(thing).__name__} is no {protocol.__name__}: it has no {lacking}")
    return made
