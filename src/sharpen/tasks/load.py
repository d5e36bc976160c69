"""Where tasks come from: one tagged union, one function."""

from __future__ import annotations

from dataclasses import replace

from sharpen.tasks import babyai, data_file, plugin, reasoning_gym, textworld, traces
from sharpen.tasks.babyai import BabyAI
from sharpen.tasks.base import TaskSet
from sharpen.tasks.data_file import Dataset, Jsonl, Parquet
from sharpen.tasks.overlap import check_overlap
from sharpen.tasks.plugin import TaskPlugin
from sharpen.tasks.reasoning_gym import ReasoningGym
from sharpen.tasks.recorded import Demonstrations, recorded
from sharpen.tasks.textworld import TextWorld
from sharpen.tasks.traces import Traces

TaskSource = TextWorld | BabyAI | ReasoningGym | Jsonl | Parquet | Dataset | Traces | TaskPlugin


def load_tasks(source: TaskSource, demonstrations: Demonstrations | None = None) -> TaskSet:
    """The task set that ``source`` describes, its splits checked for overlap: of data files also for near duplicates, of plugins where they ask for it.

    A generator's tasks share its template's wording on purpose, and its families say which of them are the same.
    ``demonstrations`` take the place of those that the source itself has.
    """
    max_overlap: float | None = None
    match source:
        case TextWorld():
            taskset = textworld.load(source)
        case BabyAI():
            taskset = babyai.load(source)
        case ReasoningGym():
            taskset = reasoning_gym.load(source)
        case Jsonl() | Parquet() | Dataset():
            taskset, max_overlap = data_file.load(source), source.max_overlap
        case Traces():
            taskset, max_overlap = traces.load(source), source.max_overlap
        case TaskPlugin():
            taskset, max_overlap = plugin.load(source), source.max_overlap
    check_overlap(taskset, max_overlap)
    return taskset if demonstrations is None else replace(taskset, recorded=recorded(demonstrations, taskset.tasks))
