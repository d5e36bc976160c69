"""Batches: a provider that keeps to OpenAI's documented protocol, or does not, over real connections on loopback; and a process that is killed anywhere."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from msgspec.structs import replace

from sharpen.agents.base import PolicyAgent
from sharpen.cli import main
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import ContentFiltered, ContextOverflow, PolicyError, RunError, SettingsError, Stopped
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.choose import open_policy
from sharpen.policies.endpoint import Batch, Endpoint
from sharpen.policies.endpoint_batch import BatchPolicy
from sharpen.policies.meter import Bill, Meter, Metered, Spending
from sharpen.policies.prices import FREE, Price, price_of
from sharpen.policies.scripted import ScriptedPolicy
from sharpen.records import Lineage, Message, Model, SampleKey, Task, Trajectory, Verdict
from sharpen.sampling import SamplingSettings, collect
from sharpen.settings import convert
from sharpen.store.files import read_json
from sharpen.store.segments import Segments
from sharpen.verbs import sample
from sharpen.verifiers.judge import Judge, LLMJudge
from sharpen.verifiers.run import judge_many

Line = dict[str, Any] | bytes
Hook = Callable[[web.Request], Awaitable[web.Response | None]]


def completion(body: dict[str, Any], content: str | None = None, **more: Any) -> dict[str, Any]:
    """What the model says to ``body``: its last message back, unless ``content`` is given."""
    said = f"to {body['messages'][-1]['content']}" if content is None else content
    message = {"role": "assistant", "content": said}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage, "model": body["model"], **more}


def answered(id: str, body: Any, status: int = 200) -> dict[str, Any]:
    return {"id": f"r-{id}", "custom_id": id, "response": {"status_code": status, "request_id": "q", "body": body}, "error": None}


def wrong(id: str, code: str, message: str = "no") -> dict[str, Any]:
    return {"id": f"r-{id}", "custom_id": id, "response": None, "error": {"code": code, "message": message}}


def expired(id: str) -> dict[str, Any]:
    return wrong(id, "batch_expired", "This request could not be executed before the completion window expired.")


QUICK = Batch(quiet_s=0.05, poll_s=0.01)


class Provider:
    """OpenAI's files and batches, as documented: a batch is validated, worked on while ``open`` is set, and ends; its lines come in another order.

    ``end`` says what a batch, given by its number and its requests, ends as: its status and the lines of both files, None for what is usual.
    ``hooks`` are called with a request, before it is answered, by method and path; a response that they give is the answer.
    """

    batch = QUICK  # the settings to ask it with

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.requests: list[list[dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.probes = self.uploads = 0
        self.open = asyncio.Event()
        self.open.set()
        self.looked = asyncio.Event()
        self.hooks: dict[str, Hook] = {}
        self.refuses: Callable[[int, list[dict[str, Any]]], list[dict[str, Any]] | None] = lambda number, requests: None
        self.end: Callable[[int, list[dict[str, Any]]], tuple[str, list[Line], list[Line]] | None] = lambda number, requests: None

    async def __aenter__(self) -> Provider:
        app = web.Application(client_max_size=1 << 24)
        for route, usual in self.routes().items():
            app.router.add_route(*route.split(), self._answer(usual))
        self.runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open.set()
        await self.runner.cleanup()

    def routes(self) -> dict[str, Callable[[web.Request], Awaitable[web.Response]]]:
        return {
            "GET /v1/models": self._models,
            "POST /v1/chat/completions": self._chat,
            "POST /v1/files": self._upload,
            "GET /v1/files/{id}/content": self._content,
            "POST /v1/batches": self._create,
            "GET /v1/batches": self._list,
            "GET /v1/batches/{id}": self._look,
        }

    def _answer(self, usual: Callable[[web.Request], Awaitable[web.Response]]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.headers.append(dict(request.headers))
            hook = self.hooks.get(f"{request.method} {request.path}")
            found = await hook(request) if hook is not None else None
            return found if found is not None else await usual(request)

        return handle

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["max_tokens"] == 1, "asked at the full price"
        self.probes += 1
        return web.json_response(completion(body))

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch" and isinstance(form["file"], web.FileField) and form["file"].filename.endswith(".jsonl")
        self.uploads += 1
        self.files[f"file-{self.uploads}"] = form["file"].file.read()
        return web.json_response({"id": f"file-{self.uploads}", "object": "file", "purpose": "batch", "status": "processed"})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert set(asked) <= {"input_file_id", "endpoint", "completion_window", "metadata"} and asked["completion_window"] == "24h"
        assert all(isinstance(value, str) for value in asked["metadata"].values())
        requests = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        for one in requests:
            assert set(one) == {"custom_id", "method", "url", "body"} and one["method"] == "POST" and one["url"] == asked["endpoint"]
            assert len(one["custom_id"]) <= 64 and one["body"]["model"] == "m"
        assert len({one["custom_id"] for one in requests}) == len(requests)
        number = len(self.batches)
        batch = {
            "id": f"batch_{number}",
            "object": "batch",
            "status": "validating",
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
        }
        if errors := self.refuses(number, requests):
            batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
        self.batches.append({**batch, **asked})
        self.requests.append(requests)
        return web.json_response(self.batches[-1])

    async def _list(self, request: web.Request) -> web.Response:
        """The latest first, two to a page."""
        ids = [batch["id"] for batch in reversed(self.batches)]
        start = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
        page = list(reversed(self.batches))[start : start + 2]
        return web.json_response({"object": "list", "data": page, "has_more": start + 2 < len(ids)})

    async def _look(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"].removeprefix("batch_"))
        batch = self.batches[number]
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress" and self.open.is_set():
            batch["status"] = "finalizing"
        elif batch["status"] == "finalizing":
            usual = ("completed", [answered(one["custom_id"], completion(one["body"])) for one in reversed(self.requests[number])], [])
            status, right, errors = self.end(number, self.requests[number]) or usual
            batch["status"] = status
            for field, lines in (("output_file_id", right), ("error_file_id", errors)):
                if lines:
                    batch[field] = f"{field}-{number}"
                    self.files[batch[field]] = b"".join(
                        (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines
                    )
        self.looked.set()
        return web.json_response(batch)

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    def asked(self, number: int) -> set[str]:
        """What batch ``number`` asked."""
        return {one["body"]["messages"][-1]["content"] for one in self.requests[number]}


def settings(server: Provider, batch: Batch | None = None, **more: Any) -> Endpoint:
    usual = {"base_urls": (server.url,), "model": "m", "backoff": 0.01, "retries": 2, "patience": 20.0, "batch": batch or server.batch}
    return Endpoint(**usual | more)


def ask(text: str) -> Conversation:
    return Conversation(messages=(Message(role="user", content=text),))


async def all_of(policy: BatchPolicy, *texts: str) -> list[Any]:
    """What each gets: what was said, or the error."""
    turns = await asyncio.gather(*(policy.complete(ask(text), Sampling()) for text in texts), return_exceptions=True)
    return [turn.message.content if isinstance(turn, Turn) else turn for turn in turns]


async def asked(server: Provider, folder: Path, *texts: str, **more: Any) -> list[Any]:
    """The same of a policy of its own."""
    policy = BatchPolicy(settings(server, **more), folder)
    try:
        return await all_of(policy, *texts)
    finally:
        await policy.close()


def line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------- gathered and merged


async def test_requests_are_gathered_and_answers_found_by_their_ids(tmp_path: Path) -> None:
    texts = [f"task {number}" for number in range(50)]
    async with Provider() as server:
        assert await asked(server, tmp_path, *texts) == [f"to {text}" for text in texts]
        assert len(server.batches) == 1 and server.probes == 1 and server.asked(0) == set(texts)
        body = server.requests[0][0]["body"]
        assert body["temperature"] == 1.0 and body["max_tokens"] == 256 and body["seed"] >= 0


async def test_no_batch_holds_more_than_it_may(tmp_path: Path) -> None:
    texts = [f"task {number}" for number in range(10)]
    async with Provider() as server:
        batch = Batch(size=4, quiet_s=0.05, poll_s=0.01)
        assert await asked(server, tmp_path / "a", *texts, batch=batch) == [f"to {text}" for text in texts]
        assert sorted(len(requests) for requests in server.requests) == [2, 4, 4]
        small = replace(batch, size=10, max_mb=0.001)  # about 1000 bytes, and each of ours has over 200
        assert await asked(server, tmp_path / "b", *texts, batch=small) == [f"to {text}" for text in texts]
        assert all(len(requests) < 6 for requests in server.requests[3:]) and sum(map(len, server.requests[3:])) == 10


async def test_tries_that_differ_by_their_seed_only_are_told_apart(tmp_path: Path) -> None:
    """A server that refuses ``seed`` is sent the same request for each try, and each try is one of its own; the same try asked twice is one."""
    async with Provider() as server:
        policy = BatchPolicy(settings(server, extra={"seed": None}), tmp_path)
        turns = await asyncio.gather(*(policy.complete(ask("Hi"), Sampling(seed=seed)) for seed in (1, 2, 3, 3)))
        await policy.close()
        assert len(turns) == 4 and len(server.requests[0]) == 3
        assert all("seed" not in one["body"] for one in server.requests[0])


# ---------------------------------------------------------------- killed


async def killed(server: Provider, folder: Path, left: Path, when: str, *texts: str, after: bool = True) -> None:
    """A policy asks ``texts``. ``left`` is its folder as a kill would leave it when the server is asked ``when``: before or ``after`` it did so."""
    taken = asyncio.Event()

    async def hook(request: web.Request) -> web.Response:
        if after:
            await server.routes()[when](request)
        shutil.copytree(folder, left)
        taken.set()
        await asyncio.Event().wait()  # no answer ever reaches it
        raise AssertionError

    server.hooks[when] = hook
    policy = BatchPolicy(settings(server), folder)
    asking = asyncio.create_task(all_of(policy, *texts))
    await taken.wait()
    asking.cancel()
    await policy.close()
    del server.hooks[when]


async def killed_waiting(server: Provider, engine: Endpoint, folder: Path, left: Path, *texts: str) -> None:
    """A policy asks ``texts``. ``left`` is its folder as a kill would leave it between the batch and its end, which then comes."""
    server.open.clear()
    policy = BatchPolicy(engine, folder)
    asking = asyncio.create_task(all_of(policy, *texts))
    await server.looked.wait()
    shutil.copytree(folder, left)
    asking.cancel()
    await policy.close()
    server.open.set()


async def test_killed_between_submission_and_answer(tmp_path: Path) -> None:
    async with Provider() as server:
        await killed_waiting(server, settings(server), tmp_path / "a", tmp_path / "left", "one", "two")
        assert await asked(server, tmp_path / "left", "two", "one") == ["to two", "to one"]
        assert len(server.batches) == server.uploads == 1
        assert await asked(server, tmp_path / "left", "one", "new") == ["to one", "to new"]  # and what was answered is kept
        assert len(server.batches) == 2 and server.asked(1) == {"new"}


@pytest.mark.parametrize(
    ("when", "after", "batches"),
    [("POST /v1/files", False, 1), ("POST /v1/files", True, 1), ("POST /v1/batches", False, 1), ("POST /v1/batches", True, 1)],
)
async def test_killed_while_it_submits(when: str, after: bool, batches: int, tmp_path: Path) -> None:
    """Whatever the provider has, nothing is bought twice: a batch that was made though nobody heard of it is found by our name on it."""
    async with Provider() as server:
        for other in range(5):  # of somebody else, on pages of their own
            await asked(server, tmp_path / f"other {other}", "other")
        await killed(server, tmp_path / "a", tmp_path / "left", when, "one", "two", after=after)
        assert await asked(server, tmp_path / "left", "one", "two") == ["to one", "to two"]
        assert len(server.batches) == 5 + batches


async def test_a_batch_that_was_made_though_its_answer_was_lost(tmp_path: Path) -> None:
    async with Provider() as server:

        async def lose(request: web.Request) -> web.Response:
            del server.hooks["POST /v1/batches"]
            await server._create(request)
            return web.Response(status=502, text="bad gateway")

        server.hooks["POST /v1/batches"] = lose
        assert await asked(server, tmp_path, "one") == ["to one"]
        assert len(server.batches) == 1


async def test_what_is_on_disk_is_asked_of_nobody(tmp_path: Path) -> None:
    async with Provider() as server:
        first = await asked(server, tmp_path, "one", "two")
        assert await asked(server, tmp_path, "one", "two") == first
        assert len(server.batches) == 1


async def test_a_cancelled_call_that_was_not_submitted_is_not_bought(tmp_path: Path) -> None:
    async with Provider() as server:
        policy = BatchPolicy(settings(server, Batch(size=2, quiet_s=60, poll_s=0.01)), tmp_path)
        first = asyncio.create_task(policy.complete(ask("one"), Sampling()))
        while not policy._queue:
            await asyncio.sleep(0.01)
        first.cancel()
        assert await all_of(policy, "two", "three") == ["to two", "to three"]
        await policy.close()
        assert server.asked(0) == {"two", "three"}


async def test_one_folder_is_one_policys(tmp_path: Path) -> None:
    async with Provider() as server:
        policy = BatchPolicy(settings(server), tmp_path)
        with pytest.raises(RunError, match="is in use by process"):
            BatchPolicy(settings(server), tmp_path)
        await policy.close()
        assert await asked(server, tmp_path, "one") == ["to one"]


async def test_closing_frees_who_waits(tmp_path: Path) -> None:
    async with Provider() as server:
        server.open.clear()
        policy = BatchPolicy(settings(server), tmp_path)
        asking = asyncio.create_task(all_of(policy, "one"))
        await server.looked.wait()
        await policy.close()
        (error,) = await asking
        assert isinstance(error, PolicyError) and "is closed" in line(error)


# ---------------------------------------------------------------- what goes wrong


async def test_what_expired_is_submitted_again(tmp_path: Path) -> None:
    def end(number: int, requests: list[dict[str, Any]]) -> tuple[str, list[Line], list[Line]] | None:
        """The first is answered, of the second nothing is said, the others are said to have expired."""
        first, _, *others = requests
        return (
            ("expired", [answered(first["custom_id"], completion(first["body"]))], [expired(one["custom_id"]) for one in others])
            if not number
            else None
        )

    async with Provider() as server:
        server.end = end
        texts = ["a", "b", "c", "d"]
        assert await asked(server, tmp_path / "a", *texts) == [f"to {text}" for text in texts]
        assert server.asked(1) == {"b", "c", "d"}
        server.end = lambda number, requests: ("expired", [], [expired(one["custom_id"]) for one in requests])
        (error,) = await asked(server, tmp_path / "b", "a", retries=1)
        assert isinstance(error, PolicyError) and error.failure == "overloaded"
        assert "before the completion window expired" in line(error) and line(error).endswith("(in 2 batches)")
        server.end = lambda number, requests: None
        assert await asked(server, tmp_path / "b", "a") == ["to a"]  # an error on disk is no answer


async def test_lines_that_the_provider_refuses_are_named(tmp_path: Path) -> None:
    async with Provider() as server:
        server.refuses = lambda number, requests: (
            [{"code": "invalid_json", "message": "This line is bad.", "line": 2}] if not number else None
        )
        one, two, three = await asked(server, tmp_path, "one", "two", "three")
        assert (one, three) == ("to one", "to three") and isinstance(two, PolicyError) and two.failure == "refused"
        assert "did not take batch batch_0: line 2: This line is bad. (invalid_json)" in line(two)
        assert server.asked(1) == {"one", "three"}


@pytest.mark.parametrize(
    "errors",
    [[{"code": "billing_hard_limit_reached", "message": "Pay."}], [{"message": "Pay.", "line": at} for at in (1, 2)]],
)
async def test_a_batch_that_is_refused_as_a_whole_is_not_sent_again(errors: list[dict[str, Any]], tmp_path: Path) -> None:
    async with Provider() as server:
        server.refuses = lambda number, requests: errors
        policy = BatchPolicy(settings(server), tmp_path)
        for _ in range(2):
            for error in await all_of(policy, "one", "two"):
                assert isinstance(error, PolicyError) and error.failure == "refused" and "Pay." in line(error)
                assert "its requests are in " in line(error)
        await policy.close()
        assert len(server.batches) == 1
        server.refuses = lambda number, requests: None
        assert await asked(server, tmp_path, "one", "two") == ["to one", "to two"]


async def test_a_full_queue_is_met_with_smaller_batches(tmp_path: Path) -> None:
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached for m in organization o. Limit: 90 enqueued tokens."}
    async with Provider() as server:
        server.refuses = lambda number, requests: [full] if len(requests) > 2 else None
        texts = [f"task {number}" for number in range(8)]
        assert await asked(server, tmp_path / "a", *texts) == [f"to {text}" for text in texts]
        taken = [len(requests) for batch, requests in zip(server.batches, server.requests, strict=True) if batch["status"] == "completed"]
        assert taken == [2, 2, 2, 2]
        server.refuses = lambda number, requests: [full]
        for error in await asked(server, tmp_path / "b", *texts):
            assert isinstance(error, PolicyError) and error.failure == "throttled" and "Enqueued token limit" in line(error)


async def test_lines_that_are_none_missing_twice_and_unknown(tmp_path: Path) -> None:
    def end(number: int, requests: list[dict[str, Any]]) -> tuple[str, list[Line], list[Line]] | None:
        if number:
            return None
        ids = {one["body"]["messages"][-1]["content"]: one for one in requests}
        right = answered(ids["twice"]["custom_id"], completion(ids["twice"]["body"], "first"))
        lines: list[Line] = [
            b'{"custom_id": "half a li',
            b"",
            b"\xff\xfe",
            b"[" * 100_000,
            b"3",
            wrong(ids["twice"]["custom_id"], "server_error"),
            right,
            answered(ids["twice"]["custom_id"], completion(ids["twice"]["body"], "second")),
            answered("nobody's", completion(ids["twice"]["body"])),
            {"custom_id": ids["neither"]["custom_id"], "response": None, "error": None},
            answered(ids["no completion"]["custom_id"], {"hello": 1}),
        ]
        return "completed", lines, []

    async with Provider() as server:
        server.end = end
        policy = BatchPolicy(settings(server), tmp_path)
        twice, missing, neither, other = await all_of(policy, "twice", "missing", "neither", "no completion")
        assert (twice, missing, neither) == ("first", "to missing", "to neither")
        assert isinstance(other, PolicyError) and other.failure == "malformed" and "something else than a chat completion" in line(other)
        assert server.asked(1) == {"missing", "neither"} and policy.counts["malformed"] >= 7
        await policy.close()
        assert await asked(server, tmp_path, "twice") == ["first"]


async def test_every_class_of_error_is_told_by_the_same_rules(tmp_path: Path) -> None:
    refusals: dict[str, Callable[[str], Line]] = {
        "long": lambda id: answered(id, {"error": {"message": "maximum context length is 10"}}, 400),
        "long too": lambda id: wrong(id, "context_length_exceeded", "maximum context length is 10"),
        "flagged": lambda id: answered(id, {"error": {"message": "flagged", "code": "content_filter"}}, 400),
        "bad": lambda id: answered(id, {"error": {"message": "no such field"}}, 400),
        "spent": lambda id: answered(id, {"error": {"message": "pay", "type": "insufficient_quota"}}, 429),
        "busy": lambda id: answered(id, {"error": {"message": "slow down"}}, 429),
        "broke": lambda id: answered(id, {"error": {"message": "oh"}}, 500),
    }
    async with Provider() as server:
        server.end = lambda number, requests: (
            "completed",
            [],
            [refusals[one["body"]["messages"][-1]["content"]](one["custom_id"]) for one in requests],
        )
        found = dict(zip(refusals, await asked(server, tmp_path, *refusals, retries=1), strict=True))
        assert isinstance(found["long"], ContextOverflow) and isinstance(found["long too"], ContextOverflow)
        failures = {text: error.failure for text, error in found.items()}
        assert failures == {
            "long": "context_length", "long too": "context_length", "flagged": "content_filter", "bad": "refused",
            "spent": "refused", "busy": "throttled", "broke": "overloaded",
        }  # fmt: skip
        assert len(server.batches) == 2 and server.asked(1) == {"busy", "broke"}
        assert all(line(error) for error in found.values())
        await asked(server, tmp_path, "long", "flagged")  # these would be said again
        assert len(server.batches) == 2


async def test_an_answer_that_the_filter_cut_is_the_policys_failure(tmp_path: Path) -> None:
    cut = {"choices": [{"message": {"content": "half"}, "finish_reason": "content_filter"}], "model": "m"}
    async with Provider() as server:
        server.end = lambda number, requests: ("completed", [answered(one["custom_id"], cut) for one in requests], [])
        for _ in range(2):
            (error,) = await asked(server, tmp_path, "one")
            assert isinstance(error, ContentFiltered)
        assert len(server.batches) == 1


async def test_answers_under_another_name_are_paid_for_once(tmp_path: Path) -> None:
    async with Provider() as server:
        server.end = lambda number, requests: (
            "completed",
            [answered(one["custom_id"], completion(one["body"], model="x")) for one in requests],
            [],
        )
        (error,) = await asked(server, tmp_path, "one")
        assert "answered as 'x'; if they are the same, set engine.answers_as: x" in line(error)
        assert await asked(server, tmp_path, "one", answers_as="x") == ["to one"] and len(server.batches) == 1


async def test_a_batch_cancelled_elsewhere_stops_the_run(tmp_path: Path) -> None:
    def end(number: int, requests: list[dict[str, Any]]) -> tuple[str, list[Line], list[Line]] | None:
        first, second, *_ = requests
        return (
            ("cancelled", [answered(first["custom_id"], completion(first["body"]))], [wrong(second["custom_id"], "batch_cancelled")])
            if not number
            else None
        )

    async with Provider() as server:
        server.end = end
        policy = BatchPolicy(settings(server), tmp_path)
        one, *others = await all_of(policy, "one", "two", "three")
        assert one == "to one" and all(isinstance(error, Stopped) for error in others)
        assert line(others[0]).startswith(f"batch batch_0 was cancelled at {server.url}, with 2 of 3 requests unanswered")
        (again,) = await all_of(policy, "two")
        assert isinstance(again, Stopped) and len(server.batches) == 1  # nobody who cancels wants it back at once
        await policy.close()
        assert await asked(server, tmp_path, "one", "two", "three") == ["to one", "to two", "to three"]
        assert server.asked(1) == {"two", "three"}


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
async def test_a_server_without_batches(path: str, status: int, tmp_path: Path) -> None:
    async def none(_: web.Request) -> web.Response:
        return web.Response(status=status, text="<h1>none</h1>")

    async with Provider() as server:
        server.hooks[f"POST {path}"] = none
        (error,) = await asked(server, tmp_path, "one")
        assert isinstance(error, SettingsError) and f"no batch API at POST {path.removeprefix('/v1')}" in line(error)
        assert "take batch out of the engine, and it is asked as a plain endpoint" in line(error) and not server.batches


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (web.json_response({"job": {"id": "j"}}), "something else than OpenAI's batch API"),
        (web.Response(text="<html>"), "something else than"),
    ],
)
async def test_a_server_with_batches_of_another_kind(answer: web.Response, said: str, tmp_path: Path) -> None:
    async def other(_: web.Request) -> web.Response:
        return web.Response(body=answer.body, headers=answer.headers)

    async with Provider() as server:
        server.hooks["POST /v1/batches"] = other
        (error,) = await asked(server, tmp_path, "one", patience=0.05)
        assert isinstance(error, PolicyError) and error.failure == "malformed" and said in line(error)


async def test_a_status_that_nobody_knows(tmp_path: Path) -> None:
    async with Provider() as server:
        server.hooks["GET /v1/batches/batch_0"] = lambda request: strange()
        (error,) = await asked(server, tmp_path, "one", patience=0.05)
        assert isinstance(error, PolicyError) and "says of batch batch_0 that it is 'asleep'" in line(error)
        server.hooks.clear()
        assert await asked(server, tmp_path, "one") == ["to one"] and len(server.batches) == 1


async def test_a_batch_that_is_gone(tmp_path: Path) -> None:
    """Deleted, or another account's: nothing is asked again before somebody says so."""
    async with Provider() as server:
        server.open.clear()
        policy = BatchPolicy(settings(server), tmp_path)
        asking = asyncio.create_task(all_of(policy, "one"))
        await server.looked.wait()
        await policy.close()
        await asking
        server.hooks["GET /v1/batches/batch_0"] = lambda request: gone()
        (error,) = await asked(server, tmp_path, "one")
        assert isinstance(error, PolicyError) and error.failure == "refused" and len(server.batches) == 1
        assert "answered 404: No such batch; give the key that batch_0 was submitted with, or delete" in line(error)
        for path in tmp_path.glob("*/0001-*"):
            path.unlink()
        server.open.set()
        assert await asked(server, tmp_path, "one") == ["to one"] and len(server.batches) == 2


async def gone() -> web.Response:
    return web.json_response({"error": {"message": "No such batch"}}, status=404)


async def strange() -> web.Response:
    return web.json_response({"id": "batch_0", "status": "asleep"})


async def test_a_server_that_is_away_for_a_while(tmp_path: Path) -> None:
    """Each question is met with trouble twice, in each way; the files too."""
    async with Provider() as server:
        for path in ("POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch_0", "GET /v1/files/output_file_id-0/content"):
            troubles = [web.Response(status=503), web.Response(status=429, headers={"Retry-After": "0"})]

            async def away(_: web.Request, troubles: list[web.Response] = troubles) -> web.Response | None:
                return troubles.pop() if troubles else None

            server.hooks[path] = away
        assert await asked(server, tmp_path, "one") == ["to one"] and len(server.batches) == 1


async def test_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, it is named; wrong, it is said so by its name; it is sent to every address and kept in no file."""
    async with Provider() as server:
        with pytest.raises(SettingsError, match=r"the environment variable TEST_KEY is not set"):
            BatchPolicy(settings(server, api_key_env="TEST_KEY"), tmp_path)
        monkeypatch.setenv("TEST_KEY", "sk-very-secret")
        assert await asked(server, tmp_path, "one", api_key_env="TEST_KEY") == ["to one"]
        assert {headers.get("Authorization") for headers in server.headers} == {"Bearer sk-very-secret"}
        assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

        async def refuse(_: web.Request) -> web.Response:
            return web.json_response({"error": {"message": "bad key sk-very-secret"}}, status=401)

        server.hooks["GET /v1/models"] = refuse
        (error,) = await asked(server, tmp_path, "two", api_key_env="TEST_KEY")
        assert isinstance(error, SettingsError) and "refuses the key in TEST_KEY" in line(error)
        server.hooks = {"POST /v1/files": refuse}
        (error,) = await asked(server, tmp_path, "two", api_key_env="TEST_KEY")
        assert isinstance(error, PolicyError) and error.failure == "refused" and "secret" not in line(error)


def test_a_ledger_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    where = Endpoint(base_url="http://127.0.0.1:9/v1", model="m", batch=Batch())
    policy = BatchPolicy(where, tmp_path)
    folder = policy.ledger.folder
    policy.ledger.close()
    (folder / "0001-aa.requests.jsonl").write_text('{"custom_id": "x"}\n')
    (folder / "0001-aa.batch.json").write_text('{"batch": 3')
    with pytest.raises(RunError, match=r"0001-aa\.batch\.json cannot be read .*; delete it") as caught:
        BatchPolicy(where, tmp_path)
    line(caught.value)


# ---------------------------------------------------------------- settings and prices


def test_settings_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="2 servers, but a batch is submitted to one"):
        Endpoint(base_urls=("http://a/v1", "http://b/v1"), batch=Batch())


def test_half_the_price() -> None:
    hosted = Model(name="m", path="https://llm.example.com/v1", fingerprint="f", kind="endpoint", lineage=Lineage(base="m"))
    prices = {"m": Price(prompt=2, sampled=8)}
    plain = Endpoint(base_url=hosted.path, model="m")
    assert price_of(hosted, plain, prices) == (prices["m"], "as set in spending.prices")
    half, why = price_of(hosted, replace(plain, batch=Batch()), prices)
    assert half == Price(prompt=1, sampled=4) and why == "as set in spending.prices, times engine.batch.price 0.5"
    assert price_of(replace(hosted, path="http://127.0.0.1:1/v1"), Endpoint(batch=Batch()), {})[0] == FREE


async def test_caps_hold_whatever_is_in_flight(tmp_path: Path) -> None:
    """Three calls fit under the cap: so many are in the batch, and the others are never asked."""
    async with Provider() as server:
        policy = BatchPolicy(settings(server), tmp_path)
        account = Meter(Spending(max_calls=3)).account("stage")
        metered = Metered("m", lambda: policy, account, Price(prompt=1e6, sampled=0))
        found = await asyncio.gather(*(metered.complete(ask(f"{number}"), Sampling()) for number in range(8)), return_exceptions=True)
        await policy.close()
        assert sum(isinstance(one, Turn) for one in found) == 3 and sum(isinstance(one, Stopped) for one in found) == 5
        assert len(server.requests) == 1 and len(server.requests[0]) == 3 and account.spent.dollars == 300


# ---------------------------------------------------------------- tries, verbs and judges


async def test_tries_wait_together(tmp_path: Path) -> None:
    """As many tries are made at once as a batch holds, whatever the settings say of an engine that answers: else this would wait for ever."""
    async with Provider() as server:
        engine = settings(server, Batch(size=20, quiet_s=3600, poll_s=0.01, wait_s=7200))
        how = SamplingSettings(concurrency=2, episode_timeout_s=5).waiting_for(engine)
        assert (how.concurrency, how.episode_timeout_s) == (20, 7200) and SamplingSettings().waiting_for(
            replace(engine, batch=None)
        ) == SamplingSettings()
        policy = BatchPolicy(engine, tmp_path)
        agent = PolicyAgent("m", policy, "f", SingleTurn(), how.turn(0))
        tasks = [Task(key=f"{number}", family=f"{number}", prompt=ask(f"task {number}").messages) for number in range(10)]
        stored = Segments(tmp_path / "trajectories", Trajectory), Segments(tmp_path / "verdicts", Verdict)
        wanted = [(task, index) for task in tasks for index in range(2)]
        tries = collect(agent, wanted, None, *stored, concurrency=how.concurrency, episode_timeout_s=how.episode_timeout_s)
        made = [trajectory async for trajectory, _ in tries]
        await policy.close()
        assert len(made) == 20 and all(one.stop == "done" for one in made) and len(server.batches) == 1


def of_a_verb(url: str, folder: Path) -> dict[str, Any]:
    lines = [
        {"key": f"t{at}", "prompt": f"What is {at} + 2?", "reference": f"{at + 2}", "split": ("train", "dev")[at % 2]} for at in range(10)
    ]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    tasks = {"source": "jsonl", "path": str(folder / "tasks.jsonl"), "verifier": "exact"}
    return {
        "name": "run",
        "model": f"{url}#m",
        "tasks": tasks,
        "sampling": {"n": 2, "concurrency": 1},
        "engine": {"engine": "endpoint", "batch": {"size": 10, "quiet_s": 3600, "poll_s": 0.01}},
        "spending": {"prices": {"m": {"prompt": 10, "sampled": 100}}},
    }


async def test_a_verb(tmp_path: Path) -> None:
    async with Provider() as server:
        await asyncio.to_thread(sample, convert(of_a_verb(server.url, tmp_path), "here"), tmp_path / "work")
        assert len(server.batches) == 1 and len(server.requests[0]) == 10
        bill = read_json(tmp_path / "work" / "spent.json", Bill)
        assert bill.total.calls == 10 and bill.total.dollars == pytest.approx(10 * (100 * 10 + 10 * 100) / 1e6 / 2)
        assert list((tmp_path / "work" / "batches").glob("*/0001-*.answers.jsonl"))


def test_tasks_of_several_turns_are_refused_before_anything_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = of_a_verb("http://127.0.0.1:9/v1", tmp_path)
    data["harness"] = {"command": ["echo", "{prompt}", "{base_url}"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    for verb in ("run", "sample"):
        where = ["--runs", str(tmp_path / "runs")] if verb == "run" else [str(tmp_path / "out")]
        assert main([verb, str(tmp_path / "run.yaml"), *where]) != 0
        said = capsys.readouterr().err.splitlines()[-1]
        assert "engine.batch: a try at the harness echo may take" in said and "give tasks of a single turn" in said


async def test_a_judge_votes_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All votes of all verdicts are in one batch, those that cannot be read in a second; the same judge finds its votes on disk."""
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path / "cache"))

    def end(number: int, requests: list[dict[str, Any]]) -> tuple[str, list[Line], list[Line]]:
        words = "It is so.\nVerdict: PASS" if number else "Who knows?"
        return "completed", [answered(one["custom_id"], completion(one["body"], words)) for one in requests], []

    async with Provider() as server:
        server.end = end
        engine = settings(server, Batch(size=12, quiet_s=3600, poll_s=0.01))
        task = Task(key="t", family="t", prompt=ask("What is 2 + 2?").messages, reference="4")
        keys = [SampleKey(model="m", task="t", environment="e", sampling="s", index=index) for index in range(4)]
        tries = [
            (
                task,
                Trajectory(
                    key=key, agent="m", messages=(*task.prompt, Message(role="assistant", content=f"4, says {key.index}")), stop="done"
                ),
            )
            for key in keys
        ]

        def judged() -> list[str]:
            verifier = LLMJudge(Judge(model=f"{server.url}#m", votes=3, engine=engine, timeout_s=1))
            try:
                return [verdict.outcome for _, verdict in judge_many(tries, verifier, timeout_s=1, at_once=1)]
            finally:
                verifier.close()

        with ThreadPoolExecutor(1) as thread:
            for _ in range(2):
                assert await asyncio.get_running_loop().run_in_executor(thread, judged) == ["pass"] * 4
        assert [len(requests) for requests in server.requests] == [12, 12]


async def test_verdicts_wait_together_while_tries_are_made_one_by_one(tmp_path: Path) -> None:
    """As many verdicts at once as fill a batch: with as many as there are tries at once, this would wait for ever."""

    class Counted(ScriptedPolicy):
        most = now = 0

        async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await super().complete(conversation, sampling)
            finally:
                self.now -= 1

    async with Provider() as server:
        server.end = lambda number, requests: (
            "completed",
            [answered(one["custom_id"], completion(one["body"], "So it is.\nVerdict: PASS")) for one in requests],
            [],
        )
        engine = settings(server, Batch(size=80, quiet_s=3600, poll_s=0.01, folder=str(tmp_path / "batches")))
        verifier = LLMJudge(Judge(model=f"{server.url}#m", votes=1, engine=engine))
        tasks = [Task(key=f"{number}", family=f"{number}", prompt=ask(f"task {number}").messages) for number in range(80)]
        policy = Counted(lambda conversation, random: "4")
        agent = PolicyAgent("m", policy, "f", SingleTurn(), Sampling())
        stored = Segments(tmp_path / "trajectories", Trajectory), Segments(tmp_path / "verdicts", Verdict)
        made = [verdict async for _, verdict in collect(agent, [(task, 0) for task in tasks], verifier, *stored, concurrency=2)]
        await asyncio.to_thread(verifier.close)
        assert [verdict.outcome for verdict in made if verdict] == ["pass"] * 80 and policy.most == 2
        assert [len(requests) for requests in server.requests] == [80]


async def test_where_batches_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path / "cache"))
    model = Model(name="m", path="http://127.0.0.1:9/v1", fingerprint="f", kind="endpoint", lineage=Lineage(base="m"))
    for logs, folder, place in (
        (tmp_path / "run", "", "run/batches"),
        (None, "", "cache/batches"),
        (tmp_path / "run", str(tmp_path / "own"), "own"),
    ):
        policy, why = open_policy(model, Endpoint(batch=Batch(folder=folder)), logs)
        assert isinstance(policy, BatchPolicy) and policy.ledger.folder.parent == tmp_path / place and str(policy.ledger.folder) in why
        await policy.close()
