"""ShareGPT rows: ``conversations`` of ``{from, value}``, in the dialect that LLaMA-Factory documents.

A ``function_call`` value is JSON, one ``{name, arguments}`` or a list of them; reasoning stands before an answer in ``<think>`` tags. A ``gpt``
value directly before a ``function_call`` is the same assistant turn: one role cannot hold both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from sharpen.formats.base import (
    BAD_FIELD,
    BROKEN_CALL,
    MIXED,
    NO_CONTENT,
    NO_MESSAGES,
    NOT_MADE,
    UNKNOWN_ROLE,
    Draft,
    Fault,
    Format,
    Note,
    called,
    decode,
    given,
    kind,
    listing,
    mapping,
    properties,
    string,
    tool_schemas,
    unwritable,
    write_lines,
)
from sharpen.formats.rows import Padded, units
from sharpen.records import Message, Trajectory

ROLES: dict[str, Any] = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    "function_call": "function_call",
}
THOUGHT = re.compile(r"<think>\n?(.*?)\n?</think>(?:\n\n)?", re.DOTALL)
LOSES = (
    "key, agent, maker and hint",
    "token ids",
    "actions",
    "stop, outcome, cost and error",
    "ids of tool calls and results",
    "names of messages",
    "an assistant turn directly after another (joined where calls follow text)",
    "spelling of tool arguments (spacing, number notation)",
)


def recognise(raw: Any) -> bool:
    return isinstance(raw, dict) and "conversations" in raw


def parse(raw: Any, note: Note) -> Draft:
    row = mapping(raw, "the row")
    if "conversations" not in row and "messages" in row:
        raise Fault(MIXED, "messages, as OpenAI has them, among ShareGPT rows")
    padded = isinstance(row, Padded)
    tools = tool_schemas(row.get("tools"), padded=padded)
    said = listing(row.get("conversations"), "conversations")
    if not said:
        raise Fault(NO_MESSAGES)
    messages: list[Message] = []
    system = string(row.get("system"), "system")
    if system:
        messages.append(Message(role="system", content=system))
    before = None
    for place, one in enumerate(said, 1):
        role, message = _message(one, place, note, padded, properties(tools))
        if role == "function_call" and before == "assistant":
            last = messages.pop()
            message = msgspec.structs.replace(
                message, content=last.content, reasoning=message.reasoning if last.reasoning is None else last.reasoning
            )
        messages.append(message)
        before = role
    rest = {name: value for name, value in row.items() if value is not None and name not in ("conversations", "tools", "system")}
    agent = rest.get("model")
    return Draft(messages=tuple(messages), tools=tools, agent=agent if isinstance(agent, str) else None, outcome=rest)


def _message(raw: Any, place: int, note: Note, padded: bool, declared: dict[str, dict[str, Any]]) -> tuple[str, Message]:
    what = f"message {place}"
    if not isinstance(raw, dict):
        raise Fault(BAD_FIELD, f"{what} is {kind(raw)}, not an object")
    if "from" not in raw and "role" in raw:
        raise Fault(MIXED, f"{what} has role and content, as OpenAI has them")
    role = ROLES.get(raw["from"]) if isinstance(raw.get("from"), str) else None
    if role is None:
        raise Fault(UNKNOWN_ROLE, f"{what} has {raw.get('from')!r}")
    if raw.get("weight") == 0 or raw.get("train") is False:
        raise Fault(NOT_MADE, f"{what} is marked as not to be trained")
    for name, inner in raw.items():
        if name not in ("from", "value", "weight", "train") and inner not in (None, "", [], {}):
            note(f"message field {name!r}")
    value = string(raw.get("value"), f"the value of {what}")
    if value is None:
        raise Fault(NO_CONTENT, what)
    if role not in ("assistant", "function_call"):
        return role, Message(role=role, content=value)
    thought = THOUGHT.match(value)
    reasoning, value = (thought[1], value[thought.end() :]) if thought else (None, value)
    if role == "assistant":
        return role, Message(role="assistant", content=value, reasoning=reasoning)
    try:
        calls = decode(value)
    except Fault as fault:
        raise Fault(BROKEN_CALL, f"{what} is {fault}") from None
    made = tuple(called(call, note, padded=padded, declared=declared) for call in (calls if isinstance(calls, list) else [calls]))
    if not made:
        raise Fault(BROKEN_CALL, f"{what} calls nothing")
    return role, Message(role="assistant", content="", reasoning=reasoning, tool_calls=made)


def row(trajectory: Trajectory) -> dict[str, Any]:
    said: list[dict[str, str]] = []
    for message in trajectory.messages:
        if message.role != "assistant":
            said.append({"from": {"system": "system", "user": "human", "tool": "observation"}[message.role], "value": message.content})
            continue
        thought = "" if message.reasoning is None else f"<think>\n{message.reasoning}\n</think>\n\n"
        if "</think>" in (message.reasoning or "") or (not thought and message.content.startswith("<think>")):
            raise unwritable(trajectory, "its text holds the <think> tags that ShareGPT marks reasoning with")
        if message.content or not message.tool_calls:
            said.append({"from": "gpt", "value": thought + message.content})
            thought = ""
        if message.tool_calls:
            try:
                calls = [{"name": call.name, "arguments": given(call)} for call in message.tool_calls]
            except Fault as fault:
                raise unwritable(trajectory, fault) from None
            said.append({"from": "function_call", "value": thought + msgspec.json.encode(calls[0] if len(calls) == 1 else calls).decode()})
    tools = {"tools": msgspec.json.encode(trajectory.tools).decode()} if trajectory.tools else {}
    return {"conversations": said, **tools}


def write(trajectories: Iterable[Trajectory], path: Path) -> int:
    return write_lines(path, map(row, trajectories))


FORMAT = Format(
    name="sharegpt",
    suffixes=(".jsonl", ".json", ".parquet"),
    units=units,
    parse=parse,
    recognise=recognise,
    write=write,
    loses=LOSES,
)
