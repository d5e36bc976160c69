"""Session traces of the Hugging Face Hub (the Session Trace Simple Format): a header line, then one line a message; a file a session.

What the format has no field for stands in the header, where further metadata is allowed and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sharpen.formats.base import (
    BAD_FIELD,
    NO_MESSAGES,
    Draft,
    Fault,
    Format,
    Note,
    decoded,
    mapping,
    rest_of,
    string,
    tool_schemas,
    with_rest,
    write_lines,
)
from sharpen.formats.rows import message
from sharpen.records import Trajectory
from sharpen.store.files import digest

HARNESS = "sharpen"
FIELDS = {"reasoningContent": "reasoning_content", "toolCalls": "tool_calls", "toolCallId": "tool_call_id"}
LOSES = ("token ids", "names of messages")


def units(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each session, as its lines, with the place of its header. A line that cannot be read is its session's fault."""
    where, session = "", list[Any]()
    for place, line in decoded(path, max_bytes):
        opens = isinstance(line, dict) and line.get("type") == "session"
        if session and opens:
            yield where, session
            session = []
        if not session:
            where = place
        session.append(Fault(line.reason, f"{place}: {line}") if isinstance(line, Fault) else line)
    if session:
        yield where, next((line for line in session if isinstance(line, Fault)), session)


def recognise(raw: Any) -> bool:
    return isinstance(raw, list) and isinstance(raw[0], dict) and raw[0].get("type") == "session"


def parse(raw: Any, note: Note) -> Draft:
    if not recognise(raw):
        raise Fault(BAD_FIELD, "the first line is no session header")
    header, *rest = raw
    said = []
    for line in rest:
        line = mapping(line, "a line")
        if line.get("type") != "message":
            note(f"lines of the type {line.get('type')!r}")
            continue
        said.append({FIELDS.get(name, name): value for name, value in mapping(line.get("message"), "message").items()})
    if not said:
        raise Fault(NO_MESSAGES)
    model = next((one["model"] for one in said if isinstance(one.get("model"), str)), None)
    times = [one.pop("timestamp") for one in said if one.get("timestamp") is not None]
    if times:
        note("timestamps")
    for one in said:
        one.pop("model", None)
    draft = Draft(
        messages=tuple(message(one, place, note) for place, one in enumerate(said, 1)),
        tools=tool_schemas(header.get("tools")),
        agent=model or string(header.get("harness"), "harness"),
        outcome={name: value for name, value in header.items() if name not in ("type", "harness", "tools", HARNESS) and value is not None},
    )
    return with_rest(draft, header)


def session(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The lines of one trajectory."""
    header: dict[str, Any] = {"type": "session", "harness": HARNESS, "id": digest(trajectory.key), "name": trajectory.key.task}
    if trajectory.tools:
        header["tools"] = trajectory.tools
    made: list[dict[str, Any]] = [header | rest_of(trajectory)]
    for one in trajectory.messages:
        said: dict[str, Any] = {"role": one.role, "content": one.content}
        if one.reasoning is not None:
            said["reasoningContent"] = one.reasoning
        if one.tool_calls:
            said["toolCalls"] = [
                {**({"id": call.id} if call.id else {}), "function": {"name": call.name, "arguments": call.arguments}}
                for call in one.tool_calls
            ]
        if one.tool_call_id is not None:
            said["toolCallId"] = one.tool_call_id
        if one.role == "assistant":
            said["model"] = trajectory.key.model
        made.append({"type": "message", "message": said})
    return made


def write(trajectories: Iterable[Trajectory], path: Path) -> int:
    """A folder with one file a session, named by its key; with the suffix .jsonl one file, which must hold one session to be shown by the hub."""
    if path.suffix == ".jsonl":
        count = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal count
            for trajectory in trajectories:
                count += 1
                yield from session(trajectory)

        write_lines(path, counted())
        return count
    return sum(bool(write_lines(path / f"{digest(trajectory.key)}.jsonl", session(trajectory))) for trajectory in trajectories)


FORMAT = Format(
    name="hub",
    suffixes=(".jsonl",),
    units=units,
    parse=parse,
    recognise=recognise,
    write=write,
    writes=(".jsonl", ""),
    loses=LOSES,
)
