"""TRL's conversational rows: ``messages`` with tool arguments as objects, ``tools``; what ``SFTTrainer`` reads.

Tool schemas go out as a JSON string (TRL reads it) and so do tool arguments in Parquet: as objects, Arrow would give each the keys of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sharpen.formats import rows
from sharpen.formats.base import Fault, Format, given, unwritable
from sharpen.records import Trajectory

LOSES = (
    "key, agent, maker and hint",
    "token ids",
    "actions",
    "stop, outcome, cost and error",
    "spelling of tool arguments (spacing, number notation)",
)


def row(trajectory: Trajectory, *, strings: bool = False) -> dict[str, Any]:
    messages = []
    for message in trajectory.messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            one["reasoning_content"] = message.reasoning
        if message.tool_calls:
            one["tool_calls"] = []
        for call in message.tool_calls:
            try:
                arguments = given(call)
            except Fault as fault:
                raise unwritable(trajectory, fault) from None
            made: dict[str, Any] = {
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments if strings else arguments},
            }
            one["tool_calls"].append({"id": call.id, **made} if call.id else made)
        for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
            if value is not None:
                one[name] = value
        messages.append(one)
    tools = {"tools": msgspec.json.encode(trajectory.tools).decode()} if trajectory.tools else {}
    return {"messages": messages, **tools}


def write(trajectories: Iterable[Trajectory], path: Path) -> int:
    return rows.write(partial(row, strings=path.suffix == ".parquet"), trajectories, path)


FORMAT = Format(
    name="trl",
    suffixes=rows.SUFFIXES,
    units=rows.units,
    parse=rows.parse,
    recognise=rows.recognise,
    write=write,
    writes=(".jsonl", ".parquet"),
    loses=LOSES,
)
