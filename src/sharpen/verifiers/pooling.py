"""Scores from a server: vLLM's ``/pooling`` (as of vLLM 0.32, with a model that it serves for classification: ``vllm serve MODEL --runner pooling``).

The server renders the conversation with the model's chat template, and refuses what is too long for the model.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import aiohttp
import msgspec

from sharpen import loop
from sharpen.errors import CapError, PolicyError, SettingsError
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.base import Conversation, Sampling, uncounted
from sharpen.policies.endpoint_start import locked_out
from sharpen.policies.endpoint_wire import Trouble
from sharpen.policies.meter import ROOM_S, Account, most
from sharpen.policies.prices import Price
from sharpen.records import Message, Record
from sharpen.verifiers.shown import without_names

MOST = 1 << 20  # bytes of one answer


class Pooling(Record, frozen=True, kw_only=True, tag_field="engine", tag="pooling"):
    """``base_url`` is the server's, with or without ``/v1`` at its end. ``api_key_env`` names the environment variable that holds the key, empty for none.

    An attempt may take ``timeout`` seconds; one that broke is followed by ``retries``, after ``backoff`` seconds, doubled each time, at most a minute.
    """

    base_url: str
    api_key_env: str = ""
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    retries: Annotated[int, msgspec.Meta(ge=0)] = 5
    backoff: Annotated[float, msgspec.Meta(gt=0)] = 0.5

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise SettingsError(f"{self.base_url!r} is no base URL; one looks like http://host:8000")


class _Data(msgspec.Struct):
    data: list[float | None]  # JSON has no NaN


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: Annotated[list[_Data], msgspec.Meta(min_length=1, max_length=1)]
    usage: _Usage | None = None


class PoolingScorer:
    """Asks the server for one conversation's logits at a time. Safe from many threads. ``charged`` says where a call is counted, and at what price."""

    def __init__(self, model: str, settings: Pooling, charged: Callable[[], tuple[Account, Price | None]]) -> None:
        self.model, self.settings, self._charged = model, settings, charged
        self.url = settings.base_url.rstrip("/").removesuffix("/v1")
        self._key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        if settings.api_key_env and not self._key:
            raise SettingsError(f"the environment variable {settings.api_key_env} is not set; it should hold the key for {self.url}")
        self._session: aiohttp.ClientSession | None = None

    def logits(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> tuple[list[float], int]:
        """One number for each label, and 0: nothing is ever left out. ContextOverflow where the conversation is too long, PolicyError where it breaks."""
        if tools:
            raise PolicyError("a pooling server is not told of tools, so a try with tools cannot be scored there; use engine: transformers")
        body = {
            "model": self.model,
            "task": "classify",
            "use_activation": False,
            "messages": [_held(wire.plain(message)) for message in messages],
        }
        account, price = self._charged()

        async def counted() -> list[float]:
            longest = most(Conversation(messages=tuple(messages)), Sampling(max_tokens=1), price)
            async with account.room(longest, "one score", ROOM_S):
                answer = await self._ask(msgspec.json.encode(body))
                prompted = max(0, answer.usage.prompt_tokens or 0) if answer.usage else 0
                account.count(prompted, 0, price, unsized=not prompted)
            if not prompted and (cap := account.meter.caps.on_size(price)):
                raise CapError(uncounted(self.url, cap))
            return [float("nan") if number is None else number for number in answer.data[0].data]

        return loop.run(counted(), on=loop.VERIFIERS), 0

    def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            loop.run(session.close(), on=loop.VERIFIERS)

    async def _ask(self, body: bytes) -> _Answer:
        for tried in range(self.settings.retries + 1):
            answer = await self._post(body)
            if not isinstance(answer, Trouble):
                return answer
            if answer.locked_out:
                raise PolicyError(locked_out(self.url, answer.status, self.settings.api_key_env, answer.said), "refused")
            if answer.then == "give up" or tried == self.settings.retries:
                raise answer.error
            await asyncio.sleep(max(answer.retry_after, min(60.0, self.settings.backoff * 2**tried)))
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, body: bytes) -> _Answer | Trouble:
        if self._session is None:
            headers = {"Content-Type": "application/json"} | wire.headers(self._key)
            self._session = aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar())
        limit = aiohttp.ClientTimeout(total=self.settings.timeout, sock_connect=15)
        try:
            async with self._session.post(f"{self.url}/pooling", data=body, allow_redirects=False, timeout=limit) as response:
                content = await response.content.read(MOST)
                while len(content) < MOST and (more := await response.content.read(MOST)):
                    content += more
                status, headers_back = response.status, response.headers
        except TimeoutError:
            return Trouble(PolicyError(f"{self.url} did not answer within {self.settings.timeout:g} s", "dead"), "again")
        except aiohttp.ClientError as error:
            return Trouble(PolicyError(f"{self.url} cannot be asked: {' '.join(str(error).split())[:300]}", "dead"), "again")
        if status != 200:
            return wire.trouble(self.url, status, headers_back, content, self._key)
        try:
            return msgspec.json.decode(content, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return wire.malformed(f"{self.url} answered with something else than one row of scores: {error}")


def _held(value: Any) -> Any:
    """A message with the names of control tokens in its texts broken."""
    if isinstance(value, dict):
        return {key: _held(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_held(inner) for inner in value]
    return without_names(value) if isinstance(value, str) else value
