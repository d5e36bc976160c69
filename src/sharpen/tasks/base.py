"""TaskSet binds tasks, the environment they are played in and the verifier that judges them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sharpen.environments.base import Environment
from sharpen.errors import SettingsError, TaskError
from sharpen.records import Record, Task, Trajectory
from sharpen.verifiers.base import Verifier

SPLITS = ("demo", "train", "dev", "test")


class Splits(Record, frozen=True, kw_only=True):
    """How many families go to each split. ``demo`` and ``train`` teach, ``dev`` decides, ``test`` is opened once."""

    demo: int = 0
    train: int = 0
    dev: int = 0
    test: int = 0

    def __post_init__(self) -> None:
        for split in SPLITS:
            if getattr(self, split) < 0:
                raise SettingsError(f"splits.{split} is {getattr(self, split)}, but must be 0 or more")


@dataclass(frozen=True)
class BoundTask:
    """A task that knows its set: all that ``sample`` and ``verify`` need."""

    task: Task
    tasks: TaskSet

    @property
    def key(self) -> str:
        return self.task.key


@dataclass(frozen=True)
class Recorded:
    """What others did at the tasks of the demo split: demonstrations in the place of the environment's expert.

    ``left_out`` counts what was in the files and is no demonstration, by reason; ``replay`` plays the assistant turns again in the environment.
    """

    trajectories: tuple[Trajectory, ...]
    left_out: dict[str, int]
    replay: bool = True

    def of(self, task: Task) -> tuple[Trajectory, ...]:
        """What was recorded at one task, in order."""
        return self._by_task.get(task.key, ())

    @cached_property
    def _by_task(self) -> dict[str, tuple[Trajectory, ...]]:
        by_task: dict[str, tuple[Trajectory, ...]] = {}
        for trajectory in self.trajectories:
            by_task[trajectory.key.task] = (*by_task.get(trajectory.key.task, ()), trajectory)
        return by_task


@dataclass(frozen=True)
class TaskSet:
    """Tasks with the environment they are played in and the verifier that judges them. Iterating gives bound tasks.

    ``recorded`` are demonstrations that came with them; None where the environment's expert demonstrates.
    """

    name: str
    tasks: tuple[Task, ...]
    environment: Environment
    verifier: Verifier | None
    recorded: Recorded | None = None

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for task in self.tasks:
            if task.key in seen:
                raise TaskError(f"task set {self.name!r} holds the key {task.key!r} twice; keys must be unique")
            seen.add(task.key)

    def __iter__(self) -> Iterator[BoundTask]:
        return (BoundTask(task, self) for task in self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def split(self, name: str) -> TaskSet:
        """The tasks of one split, in order."""
        if name not in SPLITS:
            raise TaskError(f"no split {name!r}; known: {', '.join(SPLITS)}")
        chosen = tuple(task for task in self.tasks if task.split == name)
        return TaskSet(self.name, chosen, self.environment, self.verifier)


def split_by_family(tasks: Sequence[Task], sizes: Mapping[str, int], seed: int) -> tuple[Task, ...]:
    """Give each family, whole, to one split: ``sizes[split]`` families each, drawn with ``seed``. Surplus families are left out.

    TaskError where there are too few families. A family is never cut: siblings that straddled a split would leak.
    """
    from msgspec.structs import replace

    families = sorted({task.family for task in tasks})
    wanted = sum(sizes.values())
    if len(families) < wanted:
        raise TaskError(f"the splits ask for {wanted} families, but the tasks have {len(families)}; lower splits or add tasks")
    random.Random(seed).shuffle(families)
    home: dict[str, str] = {}
    for split in SPLITS:
        for _ in range(sizes.get(split, 0)):
            home[families.pop()] = split
    return tuple(replace(task, split=home[task.family]) for task in tasks if task.family in home)
