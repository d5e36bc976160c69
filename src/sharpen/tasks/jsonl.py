"""Tasks from a JSON Lines file, one question a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sharpen import plugins
from sharpen.environments.load import EnvironmentSettings, load_environment
from sharpen.environments.single_turn import SingleTurnSettings
from sharpen.errors import SettingsError, TaskError, nearest
from sharpen.records import Message, Record, Task
from sharpen.store.files import digest
from sharpen.tasks.base import SPLITS, Splits, TaskSet, split_by_family
from sharpen.verifiers.base import Verifier
from sharpen.verifiers.function import FunctionVerifier


class Jsonl(Record, frozen=True, kw_only=True, tag_field="source", tag="jsonl"):
    """A data file and the function that judges its answers.

    ``verifier`` is ``module:function`` or ``file.py:function`` (see ``FunctionVerifier``; its code runs here), None for tasks that
    only demonstrate; ``threshold`` and ``exact`` are that verifier's; ``environment`` is where the tasks are played. ``splits`` counts
    families, drawn with ``seed``; leave it out where the rows name their splits.
    """

    path: str
    verifier: str | None = None
    threshold: float | None = None
    exact: bool = False
    environment: EnvironmentSettings = SingleTurnSettings()
    splits: Splits | None = None
    seed: int = 0


class Line(Record, frozen=True, kw_only=True):
    """One row: ``prompt`` or ``messages``, and what is known of it.

    ``key`` defaults to a digest of the row's question and reference, never to its position; ``family`` to the key. ``gold`` is a
    whole answer that must pass, or a list of assistant turns (see ``assistant_turns``); where it is missing and ``reference`` is a
    string, the reference is taken for one.
    """

    key: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    reference: Any = None
    gold: Any = None
    family: str | None = None
    split: str | None = None


def load(settings: Jsonl) -> TaskSet:
    """The file's tasks, split. TaskError or SettingsError with file and line where a row cannot be used."""
    verifier: Verifier | None = None
    if settings.verifier is not None:
        fn = plugins.load(settings.verifier, "verifier")
        verifier = FunctionVerifier(fn, settings.verifier, threshold=settings.threshold, exact=settings.exact)
    path = Path(settings.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from None
    tasks: dict[str, Task] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        task = _task(line, f"{path}:{number}")
        if task.key in tasks:
            raise TaskError(f"{path}:{number} has the key {task.key!r} of line {lines[task.key]}; drop one row or give it another key")
        tasks[task.key], lines[task.key] = task, number
    if not tasks:
        raise TaskError(f"{path} holds no tasks")
    name = f"jsonl-{path.stem}-{digest([data, settings.splits, settings.seed])[:8]}"
    return TaskSet(name, _split(settings, path, list(tasks.values())), load_environment(settings.environment), verifier)


def _split(settings: Jsonl, path: Path, tasks: list[Task]) -> tuple[Task, ...]:
    named = [task for task in tasks if task.split]
    if not named:
        if settings.splits is None:
            raise SettingsError(f"{path} names no splits; set splits to the number of families for each of {', '.join(SPLITS)}")
        return split_by_family(tasks, msgspec.structs.asdict(settings.splits), settings.seed)
    if len(named) < len(tasks):
        raise TaskError(f"{path} names a split for {len(named)} of {len(tasks)} rows; name all or none")
    if settings.splits is not None:
        raise SettingsError(f"{path} names its own splits; take splits out of the settings, or split out of the rows")
    return tuple(tasks)


def _task(line: bytes, where: str) -> Task:
    try:
        raw = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise TaskError(f"{where} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise TaskError(f"{where} holds {type(raw).__name__}, not an object with prompt or messages")
    for name in raw:
        if name not in Line.__struct_fields__:
            raise TaskError(f"{where} has the unknown field {name!r}{nearest(name, Line.__struct_fields__)}")
    try:
        row = msgspec.convert(raw, Line)
    except msgspec.ValidationError as error:
        raise TaskError(f"{where}: {error}") from None
    if (row.prompt is None) == (not row.messages):
        raise TaskError(f"{where} needs either prompt or messages")
    if row.split is not None and row.split not in SPLITS:
        raise TaskError(f"{where} has the split {row.split!r}{nearest(row.split, SPLITS)}")
    messages = row.messages or (Message(role="user", content=row.prompt or ""),)
    if messages[-1].role == "assistant":
        raise TaskError(f"{where} ends with an assistant message; the answer belongs in gold")
    key = row.key or digest([messages, row.reference])[:12]
    gold = row.gold if row.gold is not None else row.reference if isinstance(row.reference, str) else None
    return Task(
        key=key,
        family=row.family or key,
        split=row.split or "",
        prompt=messages,
        params={} if gold is None else {"gold": gold},
        reference=row.reference,
    )
