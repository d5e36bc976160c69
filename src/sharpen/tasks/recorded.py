"""What others did at tasks: recorded trajectories put under the tasks that they answer, to be demonstrations or a teacher's tries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from sharpen.chat.masks import without_ids
from sharpen.errors import TaskError
from sharpen.formats.base import ENVIRONMENT, RECORDED
from sharpen.formats.load import read
from sharpen.records import Message, Record, SampleKey, Task, Trajectory
from sharpen.tasks.base import Recorded
from sharpen.tasks.overlap import question

STRANGER = "answers what no task asks"
ELSEWHERE = "of a task in {split}: demonstrations are those of the demo split"
UNTAUGHT = "of a task in {split}: a teacher's tries are those of train, to be copied, and of dev, to be measured"


class Demonstrations(Record, frozen=True, kw_only=True):
    """Recorded trajectories as demonstrations, in the place of the environment's own expert.

    ``path`` is a file or folder in any format that ``sharpen import`` reads, ``format`` its name (None: found out); with ``strict`` a piece that
    cannot be read is an error, without it is counted. ``replay`` plays their assistant turns again in the tasks' environment, so that they are
    seen and judged as a policy's are; false takes them as they were recorded.
    """

    path: str
    format: str | None = None
    strict: bool = True
    replay: bool = True


class Finder:
    """Finds the task that a trajectory answers: by its key, else by what it asks, else by what it asks without the system message."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._keys: dict[str, Task] = {}
        self._questions: dict[str, Task] = {}
        self._bare: dict[str, Task | None] = {}
        for task in tasks:
            self._keys[task.key] = task
            self._questions[question(task)] = task
            if not (bare := _bare(task.prompt)):
                continue
            self._bare[bare] = None if bare in self._bare else task  # two that differ in their system message only: neither is meant

    def find(self, trajectory: Trajectory) -> Task | None:
        if (task := self._keys.get(trajectory.key.task)) is not None:
            return task
        asked = opening(trajectory)
        found = self._questions.get(question(Task(key="", family="", prompt=asked)))
        return found or self._bare.get(_bare(asked))


def recorded(settings: Demonstrations, tasks: Sequence[Task], splits: Sequence[str] = ("demo",)) -> Recorded:
    """The recorded trajectories of those ``tasks`` that are in ``splits``. TaskError where there are none; FormatError where the file cannot be read."""
    reading = read(settings.path, settings.format, strict=settings.strict)
    finder = Finder(tasks)
    left_out: Counter[str] = Counter()

    def theirs() -> Iterator[tuple[Task, Trajectory]]:
        for trajectory in reading:
            task = finder.find(trajectory)
            if task is not None and task.split in splits:
                yield task, trajectory
            else:
                elsewhere = ELSEWHERE if "demo" in splits else UNTAUGHT
                left_out[STRANGER if task is None else elsewhere.format(split=task.split)] += 1

    found = put_under(theirs())
    left_out.update(reading.imported.left_out)
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        nothing = "demonstrates no task of the demo split" if "demo" in splits else f"holds no try at a task of {' or '.join(splits)}"
        raise TaskError(f"{settings.path} {nothing}: {reasons}")
    return Recorded(found, dict(left_out), settings.replay)


def put_under(pairs: Iterable[tuple[Task, Trajectory]]) -> tuple[Trajectory, ...]:
    """Each trajectory under its task's key, numbered by who made it, without token ids: those may be another tokenizer's."""
    tries: Counter[tuple[str, str]] = Counter()
    found = []
    for task, trajectory in pairs:
        made_by = (trajectory.agent, task.key)
        key = SampleKey(model=trajectory.agent, task=task.key, environment=ENVIRONMENT, sampling=RECORDED, index=tries[made_by])
        tries[made_by] += 1
        found.append(replace(without_ids(trajectory), key=key))
    return tuple(found)


def opening(trajectory: Trajectory) -> tuple[Message, ...]:
    """The messages before the first answer."""
    first = next((at for at, message in enumerate(trajectory.messages) if message.role == "assistant"), len(trajectory.messages))
    return trajectory.messages[:first]


def _bare(messages: Sequence[Message]) -> str:
    spoken = tuple(message for message in messages if message.role != "system")
    return question(Task(key="", family="", prompt=spoken)) if spoken else ""
