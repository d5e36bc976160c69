"""Tool calls that a model wrote into its text, read out of it."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from sharpen.records import ToolCall

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class _Written(msgspec.Struct):
    name: str
    arguments: dict[str, Any] = {}


def read_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """``text`` without its tool calls, and those: the ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` of Qwen, Hermes and others.

    All or nothing: where one of them is no such JSON, ``text`` comes back whole, and whoever reads it sees what the model wrote.
    """
    try:
        written = [msgspec.json.decode(inner.strip(), type=_Written) for inner in _TAGGED.findall(text)]
    except (msgspec.DecodeError, RecursionError):
        return text, ()
    if not written:
        return text, ()
    calls = tuple(ToolCall(name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False)) for call in written)
    return _TAGGED.sub("", text).strip(), calls
