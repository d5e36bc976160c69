"""Rows of chat messages, as TRL and OpenAI write them: read in both spellings, from JSON lines or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sharpen.errors import FormatError
from sharpen.formats.base import (
    BAD_FIELD,
    MIXED,
    NO_CONTENT,
    NO_MESSAGES,
    NOT_MADE,
    UNKNOWN_ROLE,
    Draft,
    Fault,
    Note,
    called,
    decoded,
    kind,
    listing,
    mapping,
    properties,
    string,
    text,
    tool_schemas,
    write_lines,
)
from sharpen.records import Message, Trajectory

SUFFIXES = (".jsonl", ".json", ".parquet")
ROLES: dict[str, Any] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
KNOWN = {"role", "content", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "name", "weight", "train"}
TASK = ("task_id", "task")  # a row's "id" names the row, not the task
BATCH = 64  # rows of Parquet in memory at once


class Padded(dict[str, Any]):
    """A row that Arrow held: every object in it may have been padded with nulls."""


def units(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each row with its place: ``file:line``, or ``file:row N`` in Parquet."""
    return _parquet(path) if path.suffix == ".parquet" else decoded(path, max_bytes)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FormatError(f"{path}: reading Parquet needs pyarrow; install sharpen[formats]") from None
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", Padded(row)
    except OSError as error:
        raise FormatError(f"{path} cannot be read after row {number}: {error.strerror or str(error).splitlines()[0]}") from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is no sound Parquet file, after row {number}: {str(error).splitlines()[0]}") from None


def recognise(raw: Any) -> bool:
    return isinstance(raw, dict) and ("messages" in raw or ("prompt" in raw and "completion" in raw))


def spelled_as_strings(raw: Any) -> bool:
    """Whether a row's tool arguments are strings, as OpenAI has them."""
    for message in raw.get("messages") or ():
        for call in (message.get("tool_calls") if isinstance(message, dict) else None) or ():
            return isinstance(call, dict) and isinstance((call.get("function") or call).get("arguments"), str)
    return False


def parse(raw: Any, note: Note) -> Draft:
    """One row. Columns that are no part of the conversation are kept in ``outcome``; ``model`` names the agent."""
    row = mapping(raw, "the row")
    if "messages" not in row and "conversations" in row:
        raise Fault(MIXED, "conversations, as ShareGPT has them, among rows of messages")
    padded = isinstance(row, Padded)
    tools = tool_schemas(row.get("tools"), padded=padded)
    declared = properties(tools)
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), list):
        if any(isinstance(message, dict) and message.get("role") == "assistant" for message in row["prompt"]):
            raise Fault(NOT_MADE, "in the prompt")
        messages = [*row["prompt"], *listing(row.get("completion"), "completion")]
    if not messages:
        raise Fault(NO_MESSAGES)
    rest = {name: value for name, value in row.items() if value is not None and name not in ("messages", "tools", "prompt", "completion")}
    task = next((str(rest[name]) for name in TASK if isinstance(rest.get(name), str | int)), None)
    return Draft(
        messages=tuple(message(one, place, note, padded, declared) for place, one in enumerate(listing(messages, "messages"), 1)),
        tools=tools,
        agent=rest["model"] if isinstance(rest.get("model"), str) else None,
        task=task,
        outcome=rest,
    )


def message(raw: Any, place: int, note: Note, padded: bool = False, declared: dict[str, dict[str, Any]] | None = None) -> Message:
    """One message in either spelling. Fault with its place, from 1."""
    what = f"message {place}"
    if not isinstance(raw, dict):
        raise Fault(BAD_FIELD, f"{what} is {kind(raw)}, not an object")
    role = ROLES.get(raw["role"]) if isinstance(raw.get("role"), str) else None
    if role is None:
        if "from" in raw and "role" not in raw:
            raise Fault(MIXED, f"{what} has from and value, as ShareGPT has them")
        raise Fault(UNKNOWN_ROLE, f"{what} has {raw.get('role')!r}")
    for name, value in raw.items():
        if name not in KNOWN and value not in (None, "", [], {}):
            note(f"message field {name!r}")
    if raw["role"] == "developer":
        note("the role developer, read as system")
    if role == "assistant" and (raw.get("weight") == 0 or raw.get("train") is False):
        raise Fault(NOT_MADE, f"{what} is marked as not to be trained")
    content = text(raw.get("content"), what)
    reasoning = next(
        (found for name in ("reasoning_content", "reasoning", "thinking") if (found := string(raw.get(name), name)) is not None), None
    )
    calls = listing(raw.get("tool_calls"), "tool_calls")
    if calls and role != "assistant":
        raise Fault(BAD_FIELD, f"{what} has tool calls, but is no assistant turn")
    if content is None and not calls:
        raise Fault(NO_CONTENT, what)
    return Message(
        role=role,
        content=content or "",
        reasoning=reasoning,
        tool_calls=tuple(called(call, note, padded=padded, declared=declared) for call in calls),
        tool_call_id=string(raw.get("tool_call_id"), "tool_call_id"),
        name=string(raw.get("name"), "name"),
    )


def write(row: Callable[[Trajectory], dict[str, Any]], trajectories: Iterable[Trajectory], path: Path) -> int:
    """JSON lines, or Parquet where ``path`` says so. Parquet holds rows that ``row`` made free of objects without fixed keys."""
    if path.suffix != ".parquet":
        return write_lines(path, map(row, trajectories))
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sharpen.store.files import replacing

    string_ = pa.string()
    call = pa.struct({"id": string_, "type": string_, "function": pa.struct({"name": string_, "arguments": string_})})
    said = {"role": string_, "content": string_, "reasoning_content": string_, "tool_calls": pa.list_(call)}
    fields = {"messages": pa.list_(pa.struct({**said, "tool_call_id": string_, "name": string_})), "tools": string_}
    schema, count, batch = pa.schema(fields), 0, list[dict[str, Any]]()
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        for trajectory in trajectories:
            batch.append(row(trajectory))
            count += 1
            if len(batch) == 1000:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                batch = []
        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    return count
