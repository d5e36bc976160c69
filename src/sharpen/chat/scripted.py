"""A chat template for scripted models: ids are UTF-8 bytes, so that rows and masks can be made without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sharpen.chat.names import Names, unmarked
from sharpen.chat.template import ChatTemplate
from sharpen.chat.tool_calls import HERMES
from sharpen.records import Message

END, END_ID = "<|end|>", 256


class ScriptedTemplate(ChatTemplate):
    """``<|role|>``, a newline, the text and ``<|end|>`` for each message. Every byte is a token; ``<|end|>`` is token 256."""

    end_ids = frozenset({END_ID})
    names = Names({END})
    calls = {
        "start_anchor": "<|assistant|>\n",
        "fields": {**HERMES["fields"], "content": {"close_pattern": r"\s*<\|end\|>\s*", "content": "text"}},
    }

    def __init__(self, name: str = "scripted") -> None:
        self.name = name  # the base's tokenizer is never touched: every method that would is overridden

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, answered: bool = False) -> str:
        text = f"<|tools|>\n{self.names.held(json.dumps(list(tools), sort_keys=True))}{END}\n" if tools else ""
        text += "".join(f"<|{message.role}|>\n{self.names.held(_body(message))}{END}\n" for message in messages)
        return text if answered else f"{text}<|assistant|>\n"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split(END)):
            ids += [END_ID, *unmarked(part).encode()] if i else unmarked(part).encode()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; a character cut in the middle reads as U+FFFD, as with any byte-level tokenizer."""
        raw = b"".join(END.encode() if i == END_ID else bytes([i]) if i < 256 else b"\xff" for i in ids)
        return raw.decode(errors="replace")


def _body(message: Message) -> str:
    """The text of a message, with reasoning and calls in the tags most open models use."""
    thought = f"<think>\n{message.reasoning}\n</think>\n" if message.reasoning is not None else ""
    calls = "".join(f'<tool_call>\n{{"name": {json.dumps(c.name)}, "arguments": {c.arguments}}}\n</tool_call>' for c in message.tool_calls)
    return thought + message.content + calls
