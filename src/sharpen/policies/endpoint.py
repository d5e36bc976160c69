"""Any OpenAI-compatible ``/chat/completions``: a hosted teacher, or a server of your own. Text in, text out.

Bare aiohttp, because the client library spends more time on a request than a fast server does. Not here: streaming, and token ids.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from typing import Annotated, Any

import aiohttp
import msgspec

from sharpen.errors import ContextOverflow, PolicyError, SettingsError
from sharpen.policies.base import Conversation, Sampling, Turn, turn_seed
from sharpen.records import Message, Record, ToolCall, TurnTokens


class Endpoint(Record, frozen=True, kw_only=True, tag_field="engine", tag="endpoint"):
    """Where to ask and how patiently.

    ``base_url`` ends before ``/chat/completions``; ``api_key_env`` names the environment variable that holds the key, empty for none. ``timeout`` is
    for one attempt, in seconds; ``retries`` follow the first attempt, waiting ``backoff`` seconds, doubled each time, at most a minute, or as
    long as the server's Retry-After says.
    """

    base_url: str
    model: str
    api_key_env: str = ""
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    retries: Annotated[int, msgspec.Meta(ge=0)] = 5
    backoff: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] = 256


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class _Answer(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Answer
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


class EndpointPolicy:
    """A model behind a URL. Busy and broken servers are asked again; what still fails is a PolicyError, one line."""

    gives_token_ids = False

    def __init__(self, settings: Endpoint) -> None:
        self.settings = settings
        self.name = settings.model
        self._key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
        if settings.api_key_env and not self._key:
            raise SettingsError(
                f"the environment variable {settings.api_key_env} is not set; it should hold the key for {settings.base_url}"
            )
        self._room = asyncio.Semaphore(settings.max_concurrent)  # and no limit in the connector, whose queue the timeout would count
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The next turn. ContextOverflow where the server says so; PolicyError for refusals, and after the last retry."""
        body = {
            "model": self.settings.model,
            "messages": [_plain(message) for message in conversation.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": turn_seed(sampling.seed, [msgspec.json.encode(conversation.messages)])
            & 0x7FFFFFFF,  # some servers take 32 bits, signed
        }
        if conversation.tools:
            body["tools"] = list(conversation.tools)
        completion = await self._ask(msgspec.json.encode(body))
        choice, usage = completion.choices[0], completion.usage or _Usage()
        answer = choice.message
        calls = tuple(ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments) for c in answer.tool_calls or ())
        return Turn(
            message=Message(role="assistant", content=answer.content or "", reasoning=answer.reasoning_content, tool_calls=calls),
            tokens=TurnTokens(stop="length" if choice.finish_reason == "length" else "stop"),
            prompt_tokens=usage.prompt_tokens,
            sampled_tokens=usage.completion_tokens,
        )

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _ask(self, body: bytes) -> _Completion:
        for attempt in range(self.settings.retries + 1):
            if self._closed:
                raise PolicyError(f"the policy {self.name} is closed")
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0),
                    timeout=aiohttp.ClientTimeout(total=self.settings.timeout),
                    headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                )
            wait = min(60.0, self.settings.backoff * 2**attempt) * random.uniform(0.5, 1.0)  # spread, or all retry at once
            try:
                async with self._room, self._session.post(f"{self.settings.base_url.rstrip('/')}/chat/completions", data=body) as response:
                    content = await response.read()
                    if response.status == 200:
                        return msgspec.json.decode(content, type=_Completion)
                    problem = self._problem(response.status, content)
                    if not _may_pass(response.status, content):
                        raise problem
                    wait = max(wait, _retry_after(response.headers.get("Retry-After", "")))
            except TimeoutError:
                problem = PolicyError(f"{self.settings.base_url} did not answer within {self.settings.timeout:g} s")
            except aiohttp.ClientError as error:
                problem = PolicyError(f"{self.settings.base_url} cannot be reached: {_one_line(str(error) or type(error).__name__)}")
            except msgspec.DecodeError as error:
                raise PolicyError(f"{self.settings.base_url} answered with something else than a chat completion: {error}") from error
            if attempt < self.settings.retries:
                await asyncio.sleep(wait)
        raise PolicyError(f"{problem} (tried {self.settings.retries + 1} times)") from problem

    def _problem(self, status: int, content: bytes) -> PolicyError:
        """The server's own words in one line, without the key."""
        text = content.decode(errors="replace")
        try:
            said = msgspec.json.decode(content)
            said = said.get("error", said)
            said = said.get("message", said) if isinstance(said, dict) else said
        except (msgspec.DecodeError, AttributeError):
            said = text
        line = _one_line(str(said)) or "no message"
        line = line.replace(self._key, "***") if self._key else line
        if status in (400, 413, 422) and _OVERFLOW.search(text):
            return ContextOverflow(f"{self.name}: {line}")
        return PolicyError(f"{self.settings.base_url} answered {status}: {line}")


_OVERFLOW = re.compile(r"context[_ ](length|window|size)|maximum context|prompt is too long|too many (input )?tokens", re.IGNORECASE)


def _may_pass(status: int, content: bytes) -> bool:
    """Whether asking again may help: busy, or broken. A spent quota answers 429 too, and stays spent."""
    return (status == 429 and b"insufficient_quota" not in content) or status in (408, 409) or status >= 500


def _retry_after(header: str) -> float:
    """Seconds to wait by a Retry-After header (seconds or a date); 0 where it says nothing."""
    if re.fullmatch(r"\d+(\.\d+)?", header):
        return float(header)
    date = email.utils.parsedate_to_datetime(header).timestamp() if re.match(r"[A-Z][a-z]{2}, ", header) else 0.0
    return max(0.0, date - time.time()) if date else 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _plain(message: Message) -> dict[str, Any]:
    """A message as the API takes it. Earlier reasoning stays home: servers refuse it or drop it."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            plain[key] = value
    return plain
