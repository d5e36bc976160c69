"""Inspect's ``.eval`` logs: a zip of ``header.json`` and samples, whole (``samples/ID_epoch_N.json``) or in chunks.

Read without inspect-ai. Its zips are compressed with Zstandard, which Python's zipfile knows from 3.14 on; before that pyarrow unpacks them.
Inspect records no token ids: an assistant message that stood in the sample's input cannot be told apart in training, and is a fault.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharpen.errors import FormatError
from sharpen.formats.base import (
    BAD_FIELD,
    BROKEN_CALL,
    BROKEN_TOOLS,
    NO_MESSAGES,
    NOT_MADE,
    NOT_TEXT,
    TOO_LONG,
    Draft,
    Fault,
    Format,
    Note,
    called,
    decode,
    listing,
    mapping,
    number,
    opened,
    string,
    tool_schemas,
    whole,
    without_nulls,
)
from sharpen.records import Cost, Message, Stop, ToolCall

ATTACHED = "attachment://"
DAMAGED = "a damaged entry of the zip"
ZSTANDARD = 93
STOPS: dict[Any, Stop] = {
    "context": "overflow",
    "token": "token_limit",
    "operator": "cancelled",
    **dict.fromkeys(("message", "turn", "time", "working", "cost", "custom"), "turn_limit"),
}
REASONS: dict[Any, Stop] = {"max_tokens": "token_limit", "model_length": "overflow"}


def units(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each sample as ``(header, sample)``, with its entry in the zip as its place."""
    with opened(path) as file:
        try:
            log = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise FormatError(f"{path} is no Inspect log: {error}; a log that was cut off is repaired by: inspect log recover") from None
        names = set(log.namelist())
        start = next((name for name in ("header.json", "_journal/start.json") if name in names), None)
        if start is None:
            raise FormatError(f"{path} is a zip, but no Inspect log: it has no header.json")
        try:
            header = mapping(decode(_read(log, start, max_bytes)), "the header")
        except Fault as fault:
            raise FormatError(f"{path}:{start} cannot be read: {fault}") from None
        for name in sorted(name for name in names if re.fullmatch(r"samples/[^/]+\.json|samples/.+/sample\.json", name)):
            try:
                sample = mapping(decode(_read(log, name, max_bytes)), "the sample")
                if name.endswith("/sample.json"):
                    sample = _joined(log, names, name.removesuffix("sample.json"), sample, max_bytes)
                yield f"{path}:{name}", (header, sample)
            except Fault as fault:
                yield f"{path}:{name}", fault


def _joined(log: zipfile.ZipFile, names: set[str], folder: str, sample: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """A sample that lies in chunks, as if it were whole. Attachments are numbered there, named by their hash elsewhere."""
    found: dict[str, list[Any]] = {}
    for part in ("messages", "events", "attachments"):
        found[part] = []
        starts = sorted(int(m[1]) for name in names if (m := re.fullmatch(re.escape(f"{folder}{part}/") + r"(\d+)\.json", name)))
        for start in starts:
            if start != len(found[part]):
                raise Fault(DAMAGED, f"{part} go on at {start} after {len(found[part])}")
            found[part] += listing(decode(_read(log, f"{folder}{part}/{start}.json", max_bytes)), part)
    attachments = {str(place): value for place, value in enumerate(found["attachments"])}
    if f"{folder}metadata.json" in names:
        sample["metadata"] = decode(_read(log, f"{folder}metadata.json", max_bytes))
    pool, refs = found["messages"], sample.get("message_refs")
    return {
        **sample,
        "messages": _referred(pool, refs) if refs else sample.get("messages") or pool,
        "events": found["events"],
        "attachments": attachments,
    }


def _referred(pool: list[Any], refs: Any) -> list[Any]:
    return [message for start, end in refs for message in pool[start:end]]


def _read(log: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """An entry's bytes, never more than ``max_bytes`` of them. Fault where it is damaged or too long."""
    entry = log.getinfo(name)
    if entry.file_size > max_bytes:
        raise Fault(TOO_LONG, f"it holds {entry.file_size:,} bytes, over {max_bytes:,}; raise max_bytes (--max-bytes) if it is meant to be")
    try:
        with log.open(entry) as file:
            data = file.read(max_bytes + 1)
    except NotImplementedError:
        data = _unpacked(log, entry, max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise Fault(DAMAGED, str(error)) from None
    if len(data) > max_bytes:
        raise Fault(TOO_LONG, f"it unpacks to more than {max_bytes:,} bytes; raise max_bytes (--max-bytes) if it is meant to be")
    return data


def _unpacked(log: zipfile.ZipFile, entry: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """An entry that zipfile cannot unpack: its raw bytes from behind the local header (APPNOTE 4.3.7), through pyarrow."""
    if entry.compress_type != ZSTANDARD or log.fp is None:
        raise Fault(DAMAGED, f"it is packed by method {entry.compress_type}")
    try:
        import pyarrow as pa
    except ImportError:
        raise FormatError("reading Inspect logs needs pyarrow before Python 3.14; install sharpen[formats]") from None
    log.fp.seek(entry.header_offset)
    head = log.fp.read(30)
    log.fp.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), io.SEEK_CUR)
    raw = log.fp.read(entry.compress_size)
    try:
        with pa.input_stream(pa.BufferReader(raw), compression="zstd") as stream:
            data = bytes(stream.read(max_bytes + 1))
    except (OSError, pa.ArrowException) as error:
        raise Fault(DAMAGED, str(error)) from None
    if len(data) <= max_bytes and zlib.crc32(data) != entry.CRC:
        raise Fault(DAMAGED, "its checksum is wrong")
    return data


def recognise(raw: Any) -> bool:
    return isinstance(raw, tuple) and isinstance(raw[0], dict) and "eval" in raw[0]


def parse(raw: Any, note: Note) -> Draft:
    spec, sample = mapping(raw[0].get("eval"), "eval"), mapping(raw[1], "the sample")
    attachments = mapping(sample.get("attachments") or {}, "attachments")
    said = listing(_resolved(sample.get("messages"), attachments), "messages")
    if not said:
        raise Fault(NO_MESSAGES)
    error = mapping(sample.get("error") or {}, "error")
    limit = mapping(sample.get("limit") or {}, "limit")
    output = mapping(sample.get("output") or {}, "output")
    choices = [mapping(choice, "a choice") for choice in listing(output.get("choices"), "choices")]
    reason = choices[0].get("stop_reason") if choices else None
    stop: Stop = "error" if error else "done"
    if limit and not error:
        stop = STOPS.get(limit.get("type"), "turn_limit") if isinstance(limit.get("type"), str) else "turn_limit"
    elif not error and isinstance(reason, str):
        stop = REASONS.get(reason, "done")
    messages = tuple(_message(one, place, note) for place, one in enumerate(said, 1))
    model = string(spec.get("model"), "eval.model")
    usage = mapping(mapping(sample.get("model_usage") or {}, "model_usage").get(model or "") or {}, "usage")
    task, epoch = string(spec.get("task"), "eval.task"), sample.get("epoch")
    if sample.get("id") is None:
        raise Fault(BAD_FIELD, "the sample has no id")
    kept = {name: sample.get(name) for name in ("scores", "target", "epoch", "limit", "metadata")}
    return Draft(
        messages=messages,
        tools=_tools(sample, attachments),
        agent=model,
        task=f"{task}/{sample['id']}",
        index=epoch - 1 if type(epoch) is int and epoch > 0 else None,
        stop=stop,
        outcome={name: value for name, value in kept.items() if value not in (None, {}, [], "")},
        cost=Cost(
            prompt_tokens=sum(whole(usage.get(f"input_tokens{part}")) for part in ("", "_cache_read", "_cache_write")),
            sampled_tokens=whole(usage.get("output_tokens")),
            seconds=number(sample.get("total_time")),
            turns=sum(message.role == "assistant" for message in messages),
        ),
        error=str(error.get("message")) if error else None,
    )


def _resolved(value: Any, attachments: dict[str, Any]) -> Any:
    """``value`` with every reference to an attachment replaced by it."""
    if isinstance(value, str):
        if not value.startswith(ATTACHED):
            return value
        found = attachments.get(value.removeprefix(ATTACHED))
        if not isinstance(found, str):
            raise Fault(DAMAGED, f"{value[:80]} is not in the sample")
        return found
    if isinstance(value, dict):
        return {key: _resolved(inner, attachments) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, attachments) for inner in value]
    return value


def _message(raw: Any, place: int, note: Note) -> Message:
    what = f"message {place}"
    raw = mapping(raw, what)
    role: Any = raw.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise Fault(BAD_FIELD, f"{what} has the role {role!r}")
    if role == "assistant" and raw.get("source") == "input":
        raise Fault(NOT_MADE, f"{what} is part of the sample's input")
    said, thought = _content(raw.get("content"), what, note)
    calls = listing(raw.get("tool_calls"), "tool_calls")
    for call in calls:
        if isinstance(call, dict) and call.get("parse_error"):
            raise Fault(BROKEN_CALL, f"{what}: {call['parse_error']}")
    failed = raw.get("error")
    if role == "tool" and isinstance(failed, dict):
        said = f"Error: {failed.get('message')}"  # what Inspect shows the model then
    return Message(
        role=role,
        content=said,
        reasoning=thought,
        tool_calls=tuple(_call(call, note) for call in calls),
        tool_call_id=string(raw.get("tool_call_id"), "tool_call_id") if role == "tool" else None,
        name=string(raw.get("function"), "function") if role == "tool" else None,
    )


def _call(raw: Any, note: Note) -> ToolCall:
    return called(
        {"id": raw.get("id"), "name": raw.get("function"), "arguments": raw.get("arguments")} if isinstance(raw, dict) else raw, note
    )


def _content(content: Any, what: str, note: Note) -> tuple[str, str | None]:
    """Text and reasoning of a message, each joined by newlines where it comes in parts."""
    if isinstance(content, str):
        return content, None
    said: list[str] = []
    thought: list[str] = []
    for part in listing(content, f"the content of {what}"):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind == "text" and isinstance(part.get("text"), str):
            said.append(part["text"])
        elif kind == "reasoning" and part.get("redacted"):
            note("redacted reasoning")
        elif kind == "reasoning" and isinstance(part.get("reasoning"), str):
            thought.append(part["reasoning"])
        else:
            raise Fault(NOT_TEXT, f"{what} holds {kind!r}; a trajectory is text")
    return "\n".join(said), "\n".join(thought) if thought else None


def _tools(sample: dict[str, Any], attachments: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools that any model call of the sample was given, in the order they came up; a later schema replaces an earlier one."""
    tools: dict[str, Any] = {}
    for event in listing(sample.get("events"), "events"):
        if isinstance(event, dict) and event.get("event") == "model":
            for tool in listing(event.get("tools"), "tools"):
                tool = mapping(_resolved(tool, attachments), "a tool")
                if not isinstance(tool.get("name"), str):
                    raise Fault(BROKEN_TOOLS, "a tool has no name")
                plain = {name: without_nulls(tool[name]) for name in ("name", "description", "parameters") if tool.get(name) is not None}
                tools[tool["name"]] = {"type": "function", "function": plain}
    return tool_schemas(list(tools.values()))


FORMAT = Format(
    name="inspect",
    suffixes=(".eval",),
    units=units,
    parse=parse,
    recognise=recognise,
)
