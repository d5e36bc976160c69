"""Tool calls in sampled text, read by transformers' own response parser.

A tokenizer may bring a ``response_template`` that says how its model writes calls. Most do not yet, so the three common ways are described
here: Hermes and Qwen (JSON between tags), Llama 3 (bare JSON) and Mistral.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from sharpen.records import Message, ToolCall

Spec = Mapping[str, Any]

_CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_THOUGHT = {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"}

HERMES: Spec = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": _THOUGHT,
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>\s*", "content": "text"},
    },
}
LLAMA: Spec = {
    "start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r'(?:<\|python_tag\|>)?\{\s*(?:"type":\s*"function",\s*)?"name":\s*"(?P<name>[^"]+)",\s*"parameters":\s*',
            "close_pattern": r"\}\s*<\|eo[tm]_id\|>\s*",
            "repeats": True,
            "content": "json",
            "transform": _CALL,
        },
        "content": {"close_pattern": r"<\|eot_id\|>\s*", "content": "text"},
    },
}
MISTRAL: Spec = {
    "start_anchor": "[/INST]",
    "fields": {
        "tool_calls": {
            "open": "[TOOL_CALLS]",
            "close_pattern": r"</s>\s*",
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            "transform_each": True,
        },
        "content": {"close_pattern": r"</s>\s*", "content": "text"},
    },
}
MISTRAL_ARGS: Spec = {
    "start_anchor": "[/INST]",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\[TOOL_CALLS\](?P<name>[^\[{]+?)(?:\[CALL_ID\][^\[]*)?\[ARGS\]",
            "close_pattern": r"</s>\s*|(?=\[TOOL_CALLS\])",
            "repeats": True,
            "content": "json",
            "transform": _CALL,
        },
        "content": {"close_pattern": r"</s>\s*", "content": "text"},
    },
}


def spec_for(chat_template: str) -> Spec | None:
    """How the model of a chat template writes its calls, told by the marks the template itself writes; None where they are none of these."""
    if "<tool_call>" in chat_template and "<function=" not in chat_template and "<arg_key>" not in chat_template:
        return HERMES
    if "[TOOL_CALLS]" in chat_template:
        return MISTRAL_ARGS if "[ARGS]" in chat_template else MISTRAL
    if '"parameters"' in chat_template and "<|eot_id|>" in chat_template:
        return LLAMA
    return None


def read(text: str, spec: Spec, tools: Sequence[dict[str, Any]], prompt: str, *, plain: str) -> Message:
    """The assistant message in ``text``, a sampled turn with its end token (``plain``: without). ``prompt`` came before it and may begin it.

    A call that cannot be read leaves ``plain`` as the content, with the reason in ``problem``: the environment answers it, and the policy may
    try again.
    """
    from transformers.utils.chat_parsing import parse_response

    try:
        found = parse_response(text, dict(spec), prefix=prompt, tools=list(tools))
        calls = tuple(_call(call["function"], f"{text}{at}") for at, call in enumerate(found.get("tool_calls") or ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # the parser's, on what a policy made up
        return Message(role="assistant", content=plain, problem=f"the tool call cannot be read: {_first_line(error)}")
    if not calls and not found.get("reasoning_content"):
        return Message(role="assistant", content=plain)
    return Message(
        role="assistant",
        content=(found.get("content") or "").strip() if calls else found.get("content") or "",
        reasoning=found.get("reasoning_content"),
        tool_calls=calls,
    )


def _call(function: Any, seed: str) -> ToolCall:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError('a call needs "name" and "arguments"')
    arguments = function.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError('"arguments" must be an object')
    # Nine letters and digits: Mistral's templates refuse any other id.
    return ToolCall(
        id=hashlib.sha256(seed.encode()).hexdigest()[:9], name=function["name"], arguments=json.dumps(arguments, ensure_ascii=False)
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if not line.startswith("Content:")]
    return " ".join(lines)[:300] or type(error).__name__


def told_apart(message: Message, earlier: Sequence[Message]) -> Message:
    """The message with an id on every call that no earlier call has: programs match results to calls by it."""
    known = {call.id for said in earlier for call in said.tool_calls} | {""}
    calls: list[ToolCall] = []
    for call in message.tool_calls:
        number = len(known)
        while call.id in known:
            number += 1
            call = replace(call, id=hashlib.sha256(f"{call.id}{number}".encode()).hexdigest()[:9])
        known.add(call.id)
        calls.append(call)
    return replace(message, tool_calls=tuple(calls))
