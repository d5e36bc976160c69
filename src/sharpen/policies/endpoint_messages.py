"""What goes over the wire to Anthropic's Messages API, and what its answers mean. Pure, like ``endpoint_wire.py``, whose place it takes in batches.

As https://platform.claude.com/docs/en/api/messages has it. Not here: tools, images, and a way to ask it other than in batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from sharpen.errors import PolicyError, SettingsError
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.endpoint_wire import Completion, Trouble

HOST = "api.anthropic.com"
PATH = "/messages"
# Not the latest, 2026-10-21, which refuses temperature, top_p and top_k for every model. Models that take none refuse them by this one too.
VERSION = "2023-06-01"
_INSTEAD = {  # of other APIs' fields
    "chat_template_kwargs": "thinking",
    "frequency_penalty": "",
    "logit_bias": "",
    "min_p": "",
    "presence_penalty": "",
    "reasoning_effort": "output_config",
    "repetition_penalty": "",
    "response_format": "output_config",
    "seed": "",
    "stop": "stop_sequences",
    "system": "a system message",
    "top_logprobs": "",
}
_STOPS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""


class _Usage(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Details(msgspec.Struct):
    category: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block]
    stop_reason: str | None
    model: str | None = None
    usage: _Usage = _Usage()
    stop_details: _Details | None = None


_decode = msgspec.json.Decoder(_Message).decode


def check(extra: Mapping[str, Any], token_ids: bool, logprobs: bool, limit_field: str) -> None:
    """SettingsError where the API has no words for an engine's settings."""
    for name, value in extra.items():
        if name in _INSTEAD and value is not None:
            raise SettingsError(f"extra.{name} is unknown to Anthropic's Messages API; {_put(_INSTEAD[name])}")
    for name, wanted in {"token_ids": token_ids, "logprobs": logprobs}.items():
        if wanted:
            raise SettingsError(f"{name} is set, but Anthropic's Messages API gives none; take it out")
    if limit_field != "max_tokens":
        raise SettingsError(f"max_tokens_field is {limit_field}, but Anthropic's Messages API has max_tokens; take it out")


def _put(instead: str) -> str:
    return f"use {instead}" if instead else "take it out"


def headers(key: str) -> dict[str, str]:
    return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})


def models(model: str) -> str:
    return f"/models/{quote(model, safe='')}"


def least(extra: Mapping[str, Any]) -> int:
    thinking = extra.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    return 1 + budget if isinstance(budget, int) else 1  # max_tokens must be more than it


def request(model: str, conversation: Conversation, sampling: Sampling, limit_field: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request, without a seed, which the API has not. ``temperature`` and ``top_p`` are left out at 1, which is what it takes by itself."""
    messages = conversation.messages
    if conversation.tools or any(message.tool_calls or message.tool_call_id or message.name for message in messages):
        raise SettingsError(
            "a task has tools, or messages with names, which sharpen cannot ask Anthropic's Messages API; take batch out of the engine"
        )
    if sampling.temperature > 1:
        raise SettingsError(f"temperature is {sampling.temperature:g}, but Anthropic's Messages API takes at most 1")
    opens = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    system = [{"type": "text", "text": message.content} for message in messages[:opens]]
    body: dict[str, Any] = {
        "model": model,
        limit_field: sampling.max_tokens,
        "messages": [{"role": message.role, "content": message.content} for message in messages[opens:]],
    }
    body |= {"system": system} if system else {}
    body |= {"temperature": sampling.temperature} if sampling.temperature != 1 else {}
    body |= {"top_p": sampling.top_p} if sampling.top_p != 1 else {}
    return body | {name: value for name, value in extra.items() if value is not None}


def read(url: str, status: int, headers: Mapping[str, str], content: bytes, key: str = "") -> Completion | Trouble:
    """A message as the completion that it would be elsewhere. Prompt tokens are all of them, read from a cache, written to it, or neither."""
    message = wire.decoded(_decode, "a message", url, status, headers, content, key)
    if isinstance(message, Trouble):
        return message
    strange = {block.type for block in message.content} - {"text", "thinking", "redacted_thinking"}
    if strange or message.stop_reason not in _STOPS:
        said = f"a block of type {min(strange)!r}" if strange else f"the stop_reason {message.stop_reason!r}"
        return wire.malformed(f"{url} answered with {said}, which nobody asked for")
    text = "".join(block.text for block in message.content)
    if message.stop_reason == "refusal" and not message.content:
        category = (message.stop_details and message.stop_details.category) or "no category"
        return Trouble(PolicyError(f"{url} refused the task itself (refusal: {category})", "content_filter"), "give up")
    usage = message.usage
    prompted = sum(count or 0 for count in (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens))
    answer = {"content": text, "reasoning": "".join(block.thinking for block in message.content) or None}
    said_so = {
        "choices": [{"message": answer, "finish_reason": _STOPS[message.stop_reason]}],
        "usage": {"prompt_tokens": prompted, "completion_tokens": usage.output_tokens or 0},
        "model": message.model,
    }
    return msgspec.convert(said_so, Completion)
