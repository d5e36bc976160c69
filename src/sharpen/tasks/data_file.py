"""Tasks from data that somebody has: JSON Lines, Parquet, or anything ``datasets`` loads. One question a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sharpen.environments.load import EnvironmentSettings, load_environment
from sharpen.environments.single_turn import SingleTurnSettings
from sharpen.errors import SettingsError, TaskError, nearest
from sharpen.formats.base import key_given_twice
from sharpen.records import Message, Record, Task
from sharpen.store.files import digest
from sharpen.tasks.base import SPLITS, Splits, TaskSet, split_by_family
from sharpen.tasks.overlap import MAX_OVERLAP, check_share
from sharpen.verifiers.base import Described, Verifier
from sharpen.verifiers.function import FunctionVerifier
from sharpen.verifiers.load import Outcome, VerifierSettings, load_verifier, named


class OwnData(Record, frozen=True, kw_only=True):
    """What holds for tasks made of a user's own data, whatever it is.

    ``verifier`` is one of ``VerifierSettings``, such as ``{verifier: numeric, tolerance: 0.01}``; its tag alone, such as ``math`` or
    ``environment`` (that one's own word); ``module:function`` or ``file.py:function`` (see ``FunctionVerifier``; its code runs here); None for
    tasks that only demonstrate. ``threshold`` and ``exact`` belong to the verifier's own settings; here they do for one that is given by its name.
    ``environment`` is where the tasks are played. ``splits`` counts families, drawn with ``seed``;
    leave it out where the rows name their splits. ``max_overlap`` (over 0, up to 1) is the share of a judging question's 8-grams that
    one teaching question may hold; 1 lets near duplicates through, equal questions never.
    """

    verifier: VerifierSettings | str | None = None
    threshold: float | None = None
    exact: bool = False
    environment: EnvironmentSettings = SingleTurnSettings()
    splits: Splits | None = None
    seed: int = 0
    max_overlap: float = MAX_OVERLAP

    def __post_init__(self) -> None:
        check_share(self.max_overlap)


class DataFile(OwnData, frozen=True, kw_only=True):
    """What every kind of data file takes, whatever it is read with.

    ``columns`` maps a field of ``Line`` to the file's own name for it (``{prompt: question, reference: answer}``); columns that are
    no field of ``Line`` are then left alone, without it they are an error.
    """

    columns: dict[str, str] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in self.columns:
            if field not in Line.__struct_fields__:
                raise SettingsError(f"columns names the unknown field {field!r}{nearest(field, Line.__struct_fields__)}")


class Jsonl(DataFile, frozen=True, kw_only=True, tag_field="source", tag="jsonl"):
    """One JSON object a line, UTF-8."""

    path: str


class Parquet(DataFile, frozen=True, kw_only=True, tag_field="source", tag="parquet"):
    """One Parquet file, read batch by batch."""

    path: str


class Dataset(DataFile, frozen=True, kw_only=True, tag_field="source", tag="dataset"):
    """A data set of the ``datasets`` library.

    ``id`` is a hub id, a folder of data files or a folder that ``save_to_disk`` wrote; ``subset`` its configuration, where it has
    several; ``part`` the one of its own splits that is read. Rows come from memory-mapped files, one at a time.
    """

    id: str
    subset: str | None = None
    part: str = "train"


class Line(Record, frozen=True, kw_only=True):
    """One row: ``prompt`` or ``messages``, and what is known of it. A null is a field left out.

    ``key`` defaults to a digest of the row's question and reference, never to its position; ``family`` to the key. ``gold`` is a
    whole answer that must pass, or a list of assistant turns (see ``assistant_turns``); where it is missing and ``reference`` is a
    string, the reference is taken for one.
    """

    key: str | int | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    reference: Any = None
    gold: Any = None
    family: str | int | None = None
    split: str | None = None


class Place(Record, frozen=True, kw_only=True):
    """Where a row stands: ``unit`` is ``line`` or ``row``, ``number`` counts from 1."""

    source: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.source}:{self.number}" if self.unit == "line" else f"{self.source} row {self.number}"


Rows = Iterator[tuple[Place, Any]]


def load(settings: Jsonl | Parquet | Dataset) -> TaskSet:
    """The data's tasks, split. TaskError or SettingsError with file and line, or row, where one cannot be used."""
    verifier = verifier_of(settings)
    match settings:
        case Jsonl(path=source):
            rows = _jsonl(Path(source))
        case Parquet(path=source):
            rows = _parquet(Path(source))
        case Dataset(id=source):
            rows = _dataset(settings)
    tasks: dict[str, Task] = {}
    places: dict[str, Place] = {}
    columns: set[str] = set()
    bare: Place | None = None
    for place, raw in rows:
        if not isinstance(raw, dict):
            raise TaskError(f"{place} holds {type(raw).__name__}, not an object with prompt or messages")
        columns.update(raw)
        task = _task(raw, settings.columns, place)
        if (other := places.get(task.key)) is not None:
            raise TaskError(f"{place} has the key {task.key!r} of {other.unit} {other.number}; drop one row or give it another key")
        if verifier is not None and (problem := verifier.problem(task)):
            raise TaskError(f"{place}: task {task.key!r} {problem}")
        tasks[task.key], places[task.key] = task, place
        bare = bare or (place if task.reference is None else None)
    if not tasks:
        raise TaskError(f"{source} holds no tasks")
    for column in settings.columns.values():
        if column not in columns:
            raise SettingsError(f"{source} has no column {column!r}{nearest(column, columns)}")
    if (
        bare
        and isinstance(verifier, FunctionVerifier)
        and verifier.wants_reference
        and settings.columns.get("reference", "reference") in columns
    ):
        raise TaskError(f"{bare} has no reference, but {verifier.name!r} compares answers with one; fill it in or drop the row")
    return bind(settings, source, list(tasks.values()), verifier)


def verifier_of(settings: OwnData) -> Described | None:
    """The verifier that the settings name. SettingsError where it cannot be had, or does not take ``threshold`` or ``exact``."""
    chosen = settings.verifier
    if chosen is None:
        return None
    if isinstance(chosen, str):
        chosen = named(chosen)
    beside = {"threshold": settings.threshold, "exact": settings.exact or None}
    for key, value in beside.items():
        if value is None or isinstance(chosen, Outcome):
            continue
        if key not in chosen.__struct_fields__:
            raise SettingsError(f"{key} is set, but the verifier {chosen.__struct_config__.tag} has none; take it out")
        if getattr(chosen, key) not in (None, False, value):
            raise SettingsError(f"{key} is {value} beside the verifier and {getattr(chosen, key)} in it; take one out")
        chosen = msgspec.structs.replace(chosen, **{key: value})
    return load_verifier(chosen)


def bind(settings: OwnData, source: str, tasks: list[Task], verifier: Verifier | None) -> TaskSet:
    """The tasks, split, with their environment and verifier. ``source`` is the file that they come from."""
    chosen = _split(settings, source, tasks)
    kind = type(settings).__struct_config__.tag
    return TaskSet(f"{kind}-{Path(source).stem}-{digest(chosen)[:8]}", chosen, load_environment(settings.environment), verifier)


# ---------------------------------------------------------------- rows


def _jsonl(path: Path) -> Rows:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                place = Place(source=str(path), unit="line", number=number)
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # Windows editors put UTF-8's mark there
                if line.strip():
                    try:
                        row = msgspec.json.decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                        raise TaskError(f"{place} is not JSON in UTF-8: {error}") from None
                    if (key := key_given_twice(line, row)) is not None:
                        raise TaskError(f"{place} has the key {key!r} twice; delete one")
                    yield place, row
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from None


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TaskError(f"Parquet files need pyarrow ({error}); pip install 'sharpen[train]'") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(source=str(path), unit="row", number=number), row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        after = f" after row {number}" if number else ""
        raise TaskError(f"{path} cannot be read as Parquet{after}: {_line(error)}") from None


def _dataset(settings: Dataset) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise TaskError(f"source 'dataset' needs the datasets library ({error}); pip install 'sharpen[train]'") from None
    folder = Path(settings.id)
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        loaded = datasets.load_from_disk(settings.id) if saved else datasets.load_dataset(settings.id, name=settings.subset)
    except Exception as error:  # its loaders raise what their readers, the hub client and the disk raise
        raise TaskError(f"the data set {settings.id!r} cannot be loaded: {_line(error)}") from None
    if isinstance(loaded, Mapping):
        if settings.part not in loaded:
            raise SettingsError(f"the data set {settings.id!r} has no part {settings.part!r}{nearest(settings.part, loaded)}")
        loaded = loaded[settings.part]
    for number, row in enumerate(loaded, start=1):
        yield Place(source=settings.id, unit="row", number=number), row


def _line(error: Exception) -> str:
    """What went wrong, on one line; the cause where there is one, since ``datasets`` says no more than that it failed."""
    return " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__


# ---------------------------------------------------------------- tasks


def _task(raw: dict[str, Any], columns: Mapping[str, str], place: Place) -> Task:
    fields = {name: raw[name] for name in Line.__struct_fields__ if name in raw and name not in columns}
    fields.update({name: raw[column] for name, column in columns.items() if column in raw})
    if not columns:
        for name in raw:
            if name not in Line.__struct_fields__:
                wrong = nearest(name, Line.__struct_fields__)
                raise TaskError(f"{place} has the unknown field {name!r}{wrong}; or name the file's own fields in columns")
    if "messages" in fields:
        fields["messages"] = _without_nulls(fields["messages"])
    try:
        row = msgspec.convert({name: value for name, value in fields.items() if value is not None}, Line)
        reference = msgspec.to_builtins(row.reference)  # what Arrow holds and JSON does not: dates, decimals, bytes
    except (msgspec.ValidationError, TypeError) as error:
        raise TaskError(f"{place}: {error}") from None
    if (row.prompt is None) == (not row.messages):
        raise TaskError(f"{place} needs either prompt or messages")
    if row.split is not None and row.split not in SPLITS:
        raise TaskError(f"{place} has the split {row.split!r}{nearest(row.split, SPLITS)}")
    messages = row.messages or (Message(role="user", content=row.prompt or ""),)
    if messages[-1].role == "assistant":
        raise TaskError(f"{place} ends with an assistant message; the answer belongs in gold")
    if not any(message.content.strip() for message in messages):
        raise TaskError(f"{place} asks nothing: its {'messages are' if row.messages else 'prompt is'} empty")
    key = str(row.key) if row.key not in (None, "") else digest([messages, reference])[:12]
    gold = row.gold if row.gold is not None else reference if isinstance(reference, str) else None
    return Task(
        key=key,
        family=str(row.family) if row.family not in (None, "") else key,
        split=row.split or "",
        prompt=messages,
        params={} if gold is None else {"gold": gold},
        reference=reference,
    )


def _without_nulls(value: Any) -> Any:
    """Arrow gives every message every field that one of them has, null where it was not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _split(settings: OwnData, source: str, tasks: list[Task]) -> tuple[Task, ...]:
    named = [task for task in tasks if task.split]
    if not named:
        if settings.splits is None:
            raise SettingsError(f"{source} names no splits; set splits to the number of families for each of {', '.join(SPLITS)}")
        return split_by_family(tasks, msgspec.structs.asdict(settings.splits), settings.seed)
    if len(named) < len(tasks):
        raise TaskError(f"{source} names a split for {len(named)} of {len(tasks)} rows; name all or none")
    if settings.splits is not None:
        raise SettingsError(f"{source} names its own splits; take splits out of the settings, or split out of the rows")
    return tuple(tasks)
