"""Any OpenAI-compatible ``/chat/completions``: hosted teachers, or servers of your own, one or many. Not here: streaming.

Bare aiohttp, because the client library spends more time on a request than a fast server does. ``endpoint_wire.py`` knows what is said,
``balance.py`` whom it is said to, ``endpoint_start.py`` what is settled before the first request.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sharpen.errors import CapError, ContentFiltered, ContextOverflow, PolicyError, SettingsError
from sharpen.policies import endpoint_messages as messages
from sharpen.policies import endpoint_start as start
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.balance import Balancer, Limit, Server
from sharpen.policies.base import Conversation, Sampling, Turn, uncounted
from sharpen.policies.endpoint_wire import Completion, Trouble
from sharpen.records import Message, Record

MOST = 64 << 20  # bytes of one answer
_MESSAGES_MB = 244.0  # MiB, which are 256 MB
_OURS = (
    "model",
    "messages",
    "tools",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "stream",
    "return_token_ids",
    "logprobs",
)
Tools = tuple[dict[str, Any], ...]
_Kind = tuple[float, float, bool]  # temperature, top_p, and whether there are tools
_HELLO = Conversation(messages=(Message(role="user", content="Hi"),))


class Batch(Record, frozen=True, kw_only=True):
    """A provider's batch API, as OpenAI or Anthropic documents it: many requests at once, answered within ``window``.

    ``api`` says whose it is; "" is Anthropic's at its own address, OpenAI's at any other.

    Up to ``size`` requests, of ``max_mb`` MiB together, are in one batch, and as many wait at once. They are submitted when they are as many, or when
    none has come for ``quiet_s`` seconds; a batch is looked at every ``poll_s`` seconds. A try waits ``wait_s`` seconds at most, batches that are
    submitted again included: ``retries`` of the engine counts them. ``price`` is the share of the usual price that is billed.

    ``folder`` is where batches are kept so that none is paid for twice; "" is ``batches`` in the run's folder, or in the user's cache where there is no run
    (a judge's).
    """

    api: Literal["", "openai", "anthropic"] = ""
    size: Annotated[int, msgspec.Meta(ge=1, le=50_000)] = 10_000
    max_mb: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    quiet_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    poll_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    wait_s: Annotated[float, msgspec.Meta(gt=0)] = 3 * 24 * 3600.0
    window: str = "24h"
    price: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    folder: str = ""


class Endpoint(Record, frozen=True, kw_only=True, tag_field="engine", tag="endpoint"):
    """Where to ask and how patiently.

    ``base_urls`` end before ``/chat/completions`` and all serve ``model``; ``base_url`` is one such. Both are taken from the run's model where it
    is a URL. ``api_key_env`` names the environment variable that holds the key, empty for none.

    ``extra`` fields are sent as they are (``top_k``, ``chat_template_kwargs``, ...); a null takes ``seed`` out. ``answers_as`` is the name that the
    servers give the model in their answers, where that is another. ``check`` asks each server, before its first request, whether it serves the model
    and reads every setting.

    ``token_ids`` asks for token ids (vLLM's ``return_token_ids``), ``logprobs`` for how probable what was sampled was. That must be under the
    temperature and top-p that it was drawn at: start vLLM with ``--logprobs-mode processed_logprobs``.

    ``batch`` asks the provider's batch API, cheaper and slower, and needs tasks of a single turn.

    ``timeout`` is for one attempt, in seconds. ``max_concurrent`` requests at most are out at one server; how many really are, it finds out.
    An attempt that broke is followed by ``retries``, after ``backoff`` seconds, doubled each time, at most a minute. Where servers throttle, are
    overloaded or gone, requests wait for them and lose no retry, until none has answered for ``patience`` seconds.
    """

    base_url: str = ""
    base_urls: tuple[str, ...] = ()
    model: str = ""
    api_key_env: str = ""
    extra: dict[str, Any] = {}
    token_ids: bool = False
    logprobs: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    answers_as: str = ""
    check: bool = True
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    retries: Annotated[int, msgspec.Meta(ge=0)] = 5
    backoff: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    patience: Annotated[float, msgspec.Meta(ge=0)] = 600.0
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] = 256
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if self.base_url and self.base_urls:
            raise SettingsError("base_url and base_urls are both set; list every server in base_urls")
        if len(set(self.urls)) < len(self.urls):
            raise SettingsError("base_urls names a server twice")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.username or parts.password:
                raise SettingsError(
                    "a base URL holds a user name or password; put the key into an environment variable and name it in api_key_env"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise SettingsError(f"{url!r} is no base URL; one looks like https://host/v1")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*|", self.api_key_env):  # not shown: it may be the key
            raise SettingsError("api_key_env is the name of an environment variable, in capitals, not the key itself")
        for name, value in self.extra.items():
            if name in _OURS:
                raise SettingsError(f"extra.{name} is set by sharpen itself; use sampling, evaluation or the engine's own settings")
            if value is None and name != "seed":
                raise SettingsError(f"extra.{name} is null, which only takes out seed")
        if self.batch is not None and len(self.urls) > 1:
            raise SettingsError(f"base_urls names {len(self.urls)} servers, but a batch is submitted to one; name one, or take batch out")
        if self.batch is not None and self.speaks == "anthropic":
            messages.check(self.extra, self.token_ids, self.logprobs, self.max_tokens_field)
            if self.batch.window != "24h":
                raise SettingsError(f"batch.window is {self.batch.window!r}, but Anthropic's batches have 24h; take it out")
            if self.batch.max_mb > _MESSAGES_MB:
                raise SettingsError(f"batch.max_mb is {self.batch.max_mb:g}, but Anthropic takes at most {_MESSAGES_MB:g}")

    @property
    def speaks(self) -> Literal["openai", "anthropic"]:
        """Whose API the servers are asked by."""
        if self.batch is None:
            return "openai"
        return self.batch.api or ("anthropic" if any(urlsplit(url).hostname == messages.HOST for url in self.urls) else "openai")

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(url.rstrip("/") for url in (self.base_urls or (self.base_url,)) if url)


@dataclass
class _Known:
    """What the questions at the start found at one server. ``passed`` since it was last away, ``once`` at any time, ``asking`` now."""

    names: frozenset[str]
    passed: set[_Kind] = field(default_factory=set)
    once: set[_Kind] = field(default_factory=set)
    asking: dict[_Kind, asyncio.Task[Trouble | None]] = field(default_factory=dict)


class EndpointPolicy:
    """A model behind URLs. ``counts`` says how often what went wrong, by class of failure. ``must_count`` as in ``Served``."""

    must_count = ""

    def __init__(self, settings: Endpoint) -> None:
        if not settings.urls or not settings.model:
            raise SettingsError("an endpoint needs base_urls and model; or name both as the run's model: https://host/v1#model")
        self.settings = settings
        self.name = settings.model
        self.gives_token_ids = settings.token_ids
        self.counts: Counter[str] = Counter()
        self._wire: wire.Wire = messages if settings.speaks == "anthropic" else wire
        self._key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        if settings.api_key_env and not self._key:
            raise SettingsError(
                f"the environment variable {settings.api_key_env} is not set; it should hold the key for {settings.urls[0]}"
            )
        if not (self._key.isascii() and (self._key + "x").isprintable()):
            raise SettingsError(f"the key in {settings.api_key_env} holds characters that no HTTP header can")
        servers = [Server(url, Limit(settings.max_concurrent)) for url in settings.urls]
        self._balancer = Balancer(servers, settings.backoff, settings.patience, settings.retries)
        self._known = {server: _Known(frozenset({settings.model})) for server in servers}
        asked = {"return_token_ids": settings.token_ids, "logprobs": settings.logprobs}
        self._extra = settings.extra | {name: True for name, wanted in asked.items() if wanted}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The next turn.

        ContextOverflow and ContentFiltered where a server says so; PolicyError for refusals, after the last retry, and where patience ends;
        SettingsError where no server can be used from the start, and where one no longer takes the key.
        """
        body = self._wire.request(self.settings.model, conversation, sampling, self.settings.max_tokens_field, self._extra)
        try:
            opening = wire.opening(conversation) if len(self._known) > 1 else b""  # one server is no choice
            completion = await self._ask(msgspec.json.encode(body), opening, sampling, conversation.tools)
            return wire.turn(completion, conversation, sampling)
        except PolicyError as error:
            if error.failure == "content_filter" and (conversation.turns or isinstance(error, ContentFiltered)):
                self.counts["content_filter"] += isinstance(error, ContentFiltered)
                raise ContentFiltered(str(error)) from error
            if isinstance(error, ContextOverflow) or error.failure is None:
                raise
            if self.settings.check and self._balancer.last_answer is None:
                raise SettingsError(f"no server can be used: {error}") from error
            raise PolicyError(f"{error.failure}: {error}", error.failure) from error

    async def close(self) -> None:
        self._closed = True
        self._balancer.close(self._is_closed())
        if self._session is not None:
            await self._session.close()

    # ------------------------------------------------------------ asking

    async def _ask(self, body: bytes, opening: bytes, sampling: Sampling, tools: Tools) -> Completion:
        began = time.monotonic()
        tries = 0
        avoid: Server | None = None
        while True:
            if self._closed:
                raise self._is_closed()
            server = await self._balancer.take(opening, began, avoid)
            sent = time.monotonic()
            answer: Completion | Trouble | None
            try:
                answer = await self._start(server, sampling, tools)
                if answer is None:
                    sent = time.monotonic()
                    answer = self._vetted(server, await self._post(server.url, body))
            except BaseException:
                self._balancer.release(server)
                raise
            if isinstance(answer, Completion):
                self._balancer.answered(server, sent, answer.sampled)
                return answer
            error = answer.error
            self.counts[error.failure or "dead"] += 1
            if answer.lost:
                self._balancer.lost(server, sent, error, gone=answer.gone)
                if server.dead:
                    self._known[server].passed.clear()  # it may come back as something else
            elif answer.then == "give up":
                self._balancer.alive(server)
                if answer.locked_out:
                    raise self._locked_out(server, answer)
                raise error
            else:
                self._balancer.refused(server, sent, error, pause=answer.then == "wait", retry_after=answer.retry_after)
            if answer.then == "again":
                tries += 1
                if self._closed:
                    raise self._is_closed()
                if tries > self.settings.retries:
                    raise PolicyError(f"{error} (tried {tries} times)", error.failure) from error
                avoid = server
                wait = min(60.0, self.settings.backoff * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)  # spread, or all retry at once
                await asyncio.sleep(max(wait, answer.retry_after))

    def _locked_out(self, server: Server, answer: Trouble) -> SettingsError | PolicyError:
        """401 is about the key, whatever is asked, so it ends the run; 403 may be about this conversation, so it breaks the try."""
        line = start.locked_out(server.url, answer.status, self.settings.api_key_env, answer.said)
        return SettingsError(line) if answer.status == 401 else PolicyError(line, "refused")

    def _vetted(self, server: Server, answer: Completion | Trouble) -> Completion | Trouble:
        """What the server may not do in an answer that can be read: drop it, speak as another model, leave out ids."""
        if isinstance(answer, Trouble):
            return answer
        if (trouble := wire.aborted(server.url, answer)) is not None:
            return trouble
        known = self._known[server]
        if answer.model and answer.model not in known.names and answer.model != self.settings.answers_as:
            if not any(start.same_model(name, answer.model) for name in known.names):
                said = f"{server.url} was asked for {self.name!r} and answered as {answer.model!r}"
                return wire.malformed(f"{said}; if they are the same, set engine.answers_as: {answer.model}")
            known.names |= {answer.model}
        if self.settings.token_ids and (answer.prompt_token_ids is None or answer.choices[0].token_ids is None):
            return wire.malformed(f"{server.url} gives no token ids though return_token_ids was set; set engine.token_ids: false")
        if self.settings.logprobs and answer.choices[0].logprobs is None:
            return wire.malformed(f"{server.url} gives no log-probabilities though logprobs was set; set engine.logprobs: false")
        return answer

    async def _post(self, url: str, body: bytes) -> Completion | Trouble:
        found = await self._http("POST", url + self._wire.PATH, url, body)
        return found if isinstance(found, Trouble) else self._wire.read(url, *found, self._key)

    async def _http(
        self, method: str, address: str, url: str, body: bytes | aiohttp.Payload | None = None, most: int = MOST, seconds: float = 0.0
    ) -> tuple[int, Mapping[str, str], bytes] | Trouble:
        """Status, headers and content of ``most`` bytes, within ``seconds`` (0: what is usual); Trouble where no whole answer came."""
        if self._closed:
            raise self._is_closed()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the balancer's limits count
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Content-Type": "application/json"} | self._wire.headers(self._key),
            )
        seconds = seconds or (self.settings.timeout if method == "POST" else min(self.settings.timeout, 30.0))
        headers = body.headers if isinstance(body, aiohttp.Payload) else None
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=15)
        try:
            async with self._session.request(method, address, data=body, headers=headers, allow_redirects=False, timeout=limit) as response:
                try:
                    await response.content.readexactly(most)
                except asyncio.IncompleteReadError as whole:
                    return response.status, response.headers, whole.partial
                return wire.malformed(f"{url} sent an answer of more than {most >> 20} MiB")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            why = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            return Trouble(PolicyError(f"{url} cannot be reached: {self._line(why)}", "dead"), "wait", lost=True, gone=True)
        except TimeoutError:
            return Trouble(PolicyError(f"{url} did not answer within {seconds:g} s", "dead"), "again", lost=True)
        except aiohttp.ClientResponseError as error:
            return wire.malformed(f"{url} does not speak HTTP: {self._line(error)}")
        except aiohttp.ClientError as error:
            return Trouble(
                PolicyError(f"{url} closed the connection before its answer was whole: {self._line(error)}", "dead"), "again", lost=True
            )

    def _line(self, error: Exception) -> str:
        return wire.without_key(" ".join((str(error) or type(error).__name__).split()), self._key)[:300]

    def _is_closed(self) -> PolicyError:
        return PolicyError(f"the policy {self.name} is closed")

    # ------------------------------------------------------------ the start

    async def _start(self, server: Server, sampling: Sampling, tools: Tools) -> Trouble | None:
        """Ask the server what has to be known before its first request with these settings, once for all who wait for it."""
        known, kind = self._known[server], (sampling.temperature, sampling.top_p, bool(tools))
        if kind in known.passed or not self.settings.check:
            return None
        asking = known.asking.get(kind)
        if asking is None:
            asking = known.asking[kind] = asyncio.create_task(self._questions(server, sampling, tools))
            asking.add_done_callback(lambda done: (known.asking.pop(kind, None), done.cancelled() or done.exception()))
        try:
            return await asyncio.shield(asking)
        except SettingsError as error:
            if kind not in known.once:
                raise
            # It came back as something else: the run goes on without it.
            return Trouble(PolicyError(str(error), "malformed"), "wait", lost=True, gone=True)

    async def _questions(self, server: Server, sampling: Sampling, tools: Tools) -> Trouble | None:
        known, url = self._known[server], server.url

        async def get(address: str) -> tuple[int, bytes] | Trouble:
            found = await self._http("GET", address, url)
            return found if isinstance(found, Trouble) else (found[0], found[2])

        async def post(fields: Mapping[str, Any]) -> Completion | Trouble:
            return await self._post(url, msgspec.json.encode(fields))

        again = bool(known.passed)
        if not again:
            names = await start.names(url, self._wire.models(self.name), self.name, self.settings.api_key_env, get)
            if isinstance(names, Trouble):
                return names
            known.names = names
        hello = Sampling(temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=self._wire.least(self._extra))
        body = self._wire.request(self.name, _HELLO, hello, self.settings.max_tokens_field, self._extra)
        answer = self._vetted(server, await start.takes(url, self._wire.PATH, body, self.settings.api_key_env, post))
        if isinstance(answer, Trouble):
            if "engine." in str(answer.error):
                raise SettingsError(str(answer.error))
            return answer
        if self.must_count and answer.unsized:
            raise CapError(uncounted(url, self.must_count))
        trouble = None if again else await start.reads(url, self._wire.PATH, body, self.settings.extra, get, post)
        if trouble is None and tools:
            trouble = await start.shows_tools(url, body, tools, answer, self.settings.api_key_env, post)
        if trouble is not None:
            return trouble
        kind = (sampling.temperature, sampling.top_p, bool(tools))
        known.passed.add(kind)
        known.once.add(kind)
        self._balancer.last_answer = time.monotonic()
        return None
