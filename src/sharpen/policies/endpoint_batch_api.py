"""What the batch APIs of all providers share: what is known of a batch, and how a server is asked until it answers.

One file for each beside this: ``endpoint_batch_openai.py``, ``endpoint_batch_anthropic.py``. ``endpoint_batch.py`` gathers, waits and merges for all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import aiohttp
import msgspec

from sharpen.errors import PolicyError, SettingsError
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.endpoint import Endpoint
from sharpen.policies.endpoint_ledger import Entry
from sharpen.policies.endpoint_wire import Completion, Trouble

T = TypeVar("T")
_MOST = 2 << 30  # bytes of an answers' file
_FILE_S = 600.0  # for a file to go either way
Found = Completion | Trouble


class Error(msgspec.Struct):
    """What a provider says is wrong, with a batch or with one ``line`` of it, counted from 1."""

    code: str | None = None
    message: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Seen:
    """A batch as its provider shows it: once it has ended, the paths of its answers; where it failed, why."""

    id: str
    state: Literal["going", "completed", "expired", "cancelled", "failed"]
    files: tuple[str, ...] = ()
    errors: tuple[Error, ...] = ()


class Api(Protocol):
    """One provider's protocol. ``name`` is what it is called."""

    name: str

    def line(self, id: str, body: bytes) -> bytes:
        """A request as a batch has it, one line of JSON with ``id`` as its ``custom_id``."""

    def read(self, line: bytes) -> Found:
        """An answer's line, by the same rules as the answer to a single request."""

    async def submit(self, entry: Entry) -> str:
        """Submit a batch that surely has not been. Its id at the provider."""

    async def find(self, entry: Entry) -> str | None:
        """The id of a batch that may have been submitted; None where it was not, or nobody can tell."""

    async def look(self, id: str) -> Seen | Trouble:
        """The batch as it is now."""


@dataclass
class Calls:
    """Asks the server ``url`` through ``http``, an ``EndpointPolicy``'s. Troubles are counted in ``counts``.

    ``busy`` says whether batches of ours are under way there, ``stop`` raises where nothing more is to be asked.
    """

    url: str
    settings: Endpoint
    key: str = field(repr=False)
    http: Callable[..., Awaitable[tuple[int, Any, bytes] | Trouble]]
    counts: Counter[str]
    busy: Callable[[], bool]
    stop: Callable[[], None]

    async def patiently(self, ask: Callable[[], Awaitable[T | Trouble]]) -> T:
        """What ``ask`` gives. Troubles that may pass are waited out, for ``patience`` seconds; a full queue as long as batches of ours fill it."""
        began, wait = time.monotonic(), self.settings.backoff
        while True:
            self.stop()
            found = await ask()
            if not isinstance(found, Trouble):
                return found
            self.counts[found.error.failure or "dead"] += 1
            now = time.monotonic()
            began = now if found.error.failure == "throttled" and self.busy() else began
            if found.then == "give up" or now - began > self.settings.patience:
                raise found.error
            await asyncio.sleep(max(wait, found.retry_after))
            wait = min(60.0, 2 * wait)

    async def call(self, method: str, path: str, kind: type[T], body: bytes | aiohttp.Payload | None = None) -> T | Trouble:
        """The answer as ``kind``. SettingsError where the server has no such address."""
        found = await self.http(method, self.url + path, self.url, body, seconds=_FILE_S if body is not None else 0.0)
        if isinstance(found, Trouble):
            return found
        status, _, content = found
        if method == "POST" and status in (404, 405, 501):
            line = self._trouble(method, found).error
            raise SettingsError(f"no batch API at POST {path}: {line}; take batch out of the engine, and it is asked as a plain endpoint")
        if status not in (200, 201):
            return self._trouble(method, found)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return wire.malformed(f"{self.url}{path} answered with something else than {self._kind()}: {self.one_line(str(error))}")

    async def content(self, path: str) -> bytes:
        """A file of answers. One that was cut, or is none, is asked for again: its last line is not JSON."""
        return await self.patiently(lambda: self._content(path))

    async def _content(self, path: str) -> bytes | Trouble:
        found = await self.http("GET", self.url + path, self.url, most=_MOST, seconds=_FILE_S)
        if isinstance(found, Trouble):
            return found
        status, _, content = found
        if status != 200:
            return self._trouble("GET", found)
        try:
            msgspec.json.decode(content.rstrip().rpartition(b"\n")[2])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return wire.malformed(f"{self.url}{path} answered with something else than lines of JSON, or with half of them")
        return content

    def words(self, error: Error) -> str:
        return self.one_line(f"{error.message or 'no message'}{f' ({error.code})' if error.code else ''}")

    def one_line(self, text: str) -> str:
        return " ".join(wire.without_key(text, self.key).split())[:300]

    def missed(self, why: str = "") -> Trouble:
        """The provider did not get to a request, which may be asked again."""
        return Trouble(PolicyError(f"{self.url} did not get to it{why}", "overloaded"), "again")

    def unreadable(self, error: Exception) -> Trouble:
        return wire.malformed(f"{self.url} answered with a line that cannot be read: {self.one_line(str(error))}")

    def _trouble(self, method: str, answer: tuple[int, Any, bytes]) -> Trouble:
        found = wire.trouble(self.url, *answer, self.key)
        if method == "GET" and found.status == 404 and self.settings.speaks == "anthropic":
            return replace(found, then="wait")  # it may pass: https://github.com/anthropics/anthropic-sdk-python/issues/1432
        return found

    def _kind(self) -> str:
        return "OpenAI's batch API" if self.settings.speaks == "openai" else "Anthropic's Message Batches API"


def paid(found: Found) -> Found:
    """An answer that is of no use is paid for all the same: not to be asked again, and with settings that allow it, it counts."""
    return replace(found, then="give up") if isinstance(found, Trouble) and found.error.failure == "malformed" else found
