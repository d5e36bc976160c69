"""OpenAI's chat rows, as its fine-tuning takes them: tool arguments as strings, every call with an id, no reasoning.

Read, they may carry ``reasoning_content`` (vLLM and others add it); written, they do not: fine-tuning has no field for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sharpen.formats import rows
from sharpen.formats.base import Fault, Format, check, given, unwritable, write_lines
from sharpen.records import Trajectory

LOSES = (
    "key, agent, maker and hint",
    "reasoning",
    "token ids",
    "actions",
    "stop, outcome, cost and error",
    "that a tool call had no id (one is made up)",
    "names of tool messages",
)


def row(trajectory: Trajectory) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    count, waiting = 0, list[tuple[str, str]]()  # the id a call has, the id it is written with
    try:
        check(trajectory.messages, trajectory.stop)
        for message in trajectory.messages:
            one: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.tool_calls:
                waiting, one["tool_calls"] = [], []
            for call in message.tool_calls:
                given(call)  # refused there, where it would be refused here
                count += 1
                waiting.append((call.id, call.id or f"call_{count}"))
                function = {"name": call.name, "arguments": call.arguments}
                one["tool_calls"].append({"id": waiting[-1][1], "type": "function", "function": function})
            if message.role == "tool":
                asked = next((pair for pair in waiting if pair[0] == message.tool_call_id), None)
                asked = asked or (waiting[0] if not message.tool_call_id else next(pair for pair in waiting if not pair[0]))
                waiting.remove(asked)
                one["tool_call_id"] = asked[1]
            elif message.name is not None:
                one["name"] = message.name
            messages.append(one)
    except Fault as fault:
        raise unwritable(trajectory, fault) from None
    return {"messages": messages, **({"tools": trajectory.tools} if trajectory.tools else {})}


def write(trajectories: Iterable[Trajectory], path: Path) -> int:
    return write_lines(path, map(row, trajectories))


FORMAT = Format(
    name="openai",
    suffixes=rows.SUFFIXES,
    units=rows.units,
    parse=rows.parse,
    recognise=lambda raw: rows.recognise(raw) and rows.spelled_as_strings(raw),
    write=write,
    loses=LOSES,
)
