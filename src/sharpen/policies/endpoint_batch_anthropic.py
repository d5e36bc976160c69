"""Anthropic's Message Batches, as https://platform.claude.com/docs/en/build-with-claude/batch-processing has them.

All requests go in one (POST /messages/batches), each with an id of ours; the batch is looked at (GET /messages/batches/ID) until it has ended; then
there are its results, lines in any order (GET /messages/batches/ID/results).

A batch carries no name and nothing else of ours until its results are there. So the latest batch of the account is written down before one is sent:
where no answer to that came, those after it with as many requests are waited for, and ours is known by the ids in its results.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial

import msgspec

from sharpen.policies import endpoint_messages as messages
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.endpoint import Batch
from sharpen.policies.endpoint_batch_api import Calls, Found, Seen, paid
from sharpen.policies.endpoint_ledger import Entry, Ledger, id_of
from sharpen.policies.endpoint_wire import Trouble

_PATH = "/messages/batches"
_PAGE = 100  # batches, the latest first
_PAGES = 10  # in which one of ours is looked for
_STATUS = {  # that each kind of error has where a request is asked by itself
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Batch(msgspec.Struct):
    id: str
    processing_status: str
    request_counts: dict[str, int]
    cancel_initiated_at: datetime | None = None
    archived_at: datetime | None = None


class _Batches(msgspec.Struct):
    data: list[_Batch]
    has_more: bool = False


class _Kind(msgspec.Struct):
    type: str


class _Error(msgspec.Struct):
    error: _Kind


class _Result(msgspec.Struct):
    type: str
    message: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    """A line of the results."""

    result: _Result


_answer = msgspec.json.Decoder(_Answer).decode
_error = msgspec.json.Decoder(_Error).decode


class MessageBatches:
    name = "Message Batches, which take no seed"

    def __init__(self, calls: Calls, ledger: Ledger, batch: Batch) -> None:
        self._calls = calls
        self._ledger = ledger
        self._poll_s = batch.poll_s

    def line(self, id: str, body: bytes) -> bytes:
        return msgspec.json.encode({"custom_id": id, "params": msgspec.Raw(body)})

    def read(self, line: bytes) -> Found:
        calls = self._calls
        try:
            result = _answer(line).result
            if result.type == "errored":
                status = _STATUS.get(_error(result.error).error.type, 500)
                return wire.trouble(calls.url, status, {}, bytes(result.error), calls.key)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return calls.unreadable(error)
        if result.type == "succeeded":
            return paid(messages.read(calls.url, 200, {}, bytes(result.message), calls.key))
        if result.type in ("expired", "canceled"):
            return calls.missed(f": the request {'expired' if result.type == 'expired' else 'was cancelled'}")
        return wire.malformed(f"{calls.url} answered with a line whose result is {calls.one_line(result.type)!r}")

    async def submit(self, entry: Entry) -> str:
        latest = await self._calls.patiently(partial(self._page, "?limit=1"))
        self._ledger.sending(entry, latest.data[0].id if latest.data else "")
        return await self._calls.patiently(lambda: self._created(entry))

    async def _created(self, entry: Entry) -> str | Trouble:
        if not entry.fresh and (found := await self.find(entry)) is not None:  # made, though its answer was lost
            return found
        entry.fresh = False
        lines = self._ledger.requests(entry).read_bytes().splitlines()
        made = await self._calls.call("POST", _PATH, _Batch, b'{"requests":[' + b",".join(lines) + b"]}")
        if isinstance(made, Trouble):
            entry.fresh = 400 <= made.status < 500 and made.status != 408  # it was not taken
            return made
        return made.id

    async def find(self, entry: Entry) -> str | None:
        """By the ids in its results, so that it has to end first. None, too, where the server does not list batches."""
        latest = self._ledger.sent_after(entry)
        if latest is None:
            return None  # killed before it was sent
        await asyncio.sleep(self._poll_s)  # a batch may be shown a while after it was made
        after = ""
        for _ in range(_PAGES):
            page = await self._calls.patiently(partial(self._page, f"?limit={_PAGE}{after}"))
            for batch in page.data:
                if batch.id == latest:
                    return None
                as_many = sum(batch.request_counts.values()) == len(entry.ids)
                if as_many and batch.archived_at is None and not self._ledger.has(batch.id) and await self._holds(batch.id, entry):
                    return batch.id
            if not page.has_more or not page.data:
                return None
            after = f"&after_id={page.data[-1].id}"
        return None

    async def _page(self, query: str) -> _Batches | Trouble:
        page = await self._calls.call("GET", _PATH + query, _Batches)
        return _Batches([]) if isinstance(page, Trouble) and page.status in (404, 405, 501) else page

    async def _holds(self, id: str, entry: Entry) -> bool:
        """Whether the batch's requests are those of ``entry``."""
        while (seen := await self._calls.patiently(lambda: self.look(id))).state == "going":
            await asyncio.sleep(self._poll_s)
        (file,) = seen.files
        ids = set(entry.ids)
        return any(id_of(line) in ids for line in (await self._calls.content(file)).splitlines())

    async def look(self, id: str) -> Seen | Trouble:
        found = await self._calls.call("GET", f"{_PATH}/{id}", _Batch)
        if isinstance(found, Trouble):
            return found
        if found.processing_status in ("in_progress", "canceling"):
            return Seen(found.id, "going")
        if found.processing_status != "ended":
            return wire.malformed(f"{self._calls.url} says of batch {id} that it is {found.processing_status!r}")
        # Results are asked of the address that was given, and not of results_url: the key goes to nobody else.
        return Seen(found.id, "completed" if found.cancel_initiated_at is None else "cancelled", (f"{_PATH}/{id}/results",))
