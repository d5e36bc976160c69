"""Message Batches: a provider that keeps to Anthropic's documented protocol, or does not, over real connections on loopback."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from sharpen.errors import ContentFiltered, ContextOverflow, PolicyError, SettingsError, Stopped
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.choose import open_policy
from sharpen.policies.endpoint import Batch, Endpoint
from sharpen.policies.endpoint_batch import BatchPolicy
from sharpen.policies.prices import Price, price_of
from sharpen.records import Lineage, Message, Model
from test_batch import QUICK, Line, Provider, all_of, ask, asked, killed, killed_waiting, line, settings

FIELDS = {"model", "max_tokens", "messages", "system", "temperature", "top_p", "top_k", "stop_sequences", "thinking", "output_config"}
WHEN = "2026-11-20T10:00:00.123456Z"
POST, LIST, LOOK, RESULTS = (
    "POST /v1/messages/batches",
    "GET /v1/messages/batches",
    "GET /v1/messages/batches/msgbatch_0",
    "GET /v1/messages/batches/msgbatch_0/results",
)


def failure(kind: str, message: str = "no") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def refuse(status: int, kind: str, message: str = "no") -> web.Response:
    return web.json_response(failure(kind, message), status=status)


def message(params: dict[str, Any], content: str | None = None, stop: str = "end_turn", **more: Any) -> dict[str, Any]:
    """What the model says to ``params``: its last message back, unless ``content`` is given."""
    said = f"to {params['messages'][-1]['content']}" if content is None else content
    usage = {"input_tokens": 70, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 10, "output_tokens": 12}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": said, "citations": None}],
        "model": params["model"],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
        **more,
    }


def succeeded(one: dict[str, Any], *args: Any, **more: Any) -> dict[str, Any]:
    return {"custom_id": one["custom_id"], "result": {"type": "succeeded", "message": message(one["params"], *args, **more)}}


def errored(one: dict[str, Any], kind: str, said: str = "no") -> dict[str, Any]:
    return {"custom_id": one["custom_id"], "result": {"type": "errored", "error": failure(kind, said)}}


def text_of(one: dict[str, Any]) -> str:
    return str(one["params"]["messages"][-1]["content"])


class Anthropic(Provider):
    """Anthropic's, as documented. Of a batch nothing tells whose it is before it has ended; its results come in another order.

    ``results`` gives the lines of a batch's results by its number and its requests, None for what is usual.
    """

    batch = replace(QUICK, api="anthropic")

    def __init__(self) -> None:
        super().__init__()
        self.results: Callable[[int, list[dict[str, Any]]], list[Line] | None] = lambda number, requests: None

    def routes(self) -> dict[str, Callable[[web.Request], Awaitable[web.Response]]]:
        return {
            "GET /v1/models/{id}": self._model,
            "POST /v1/messages": self._chat,
            "POST /v1/messages/batches": self._create,
            "GET /v1/messages/batches": self._list,
            "GET /v1/messages/batches/{id}": self._look,
            "GET /v1/messages/batches/{id}/results": self._content,
        }

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != "m":
            return refuse(404, "not_found_error", f"model: {request.match_info['id']}")
        return web.json_response({"type": "model", "id": "m-20260101", "display_name": "M", "created_at": WHEN})

    async def _chat(self, request: web.Request) -> web.Response:
        assert request.headers["anthropic-version"] == "2023-06-01" and "Authorization" not in request.headers
        body = await request.json()
        if body["model"] != "m":
            return refuse(404, "not_found_error", f"model: {body['model']}")
        for name in body:
            if name not in FIELDS:
                return refuse(400, "invalid_request_error", f"{name}: Extra inputs are not permitted")
        if not isinstance(body.get("stop_sequences", []), list):
            return refuse(400, "invalid_request_error", "stop_sequences: Input should be a valid list")
        assert body["max_tokens"] == 1, "asked at the full price"
        self.probes += 1
        return web.json_response(message(body, stop="max_tokens", model="m-20260101"))

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert set(asked) == {"requests"} and 1 <= len(asked["requests"]) <= 100_000
        for one in asked["requests"]:
            assert set(one) == {"custom_id", "params"} and re.fullmatch("[a-zA-Z0-9_-]{1,64}", one["custom_id"])
            assert {"model", "max_tokens", "messages"} <= set(one["params"]) <= FIELDS
            assert all(set(said) == {"role", "content"} and said["role"] in ("user", "assistant") for said in one["params"]["messages"])
        assert len({one["custom_id"] for one in asked["requests"]}) == len(asked["requests"])
        counts = {"processing": len(asked["requests"]), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        batch = {
            "id": f"msgbatch_{len(self.batches)}",
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": counts,
            "created_at": WHEN,
            "expires_at": WHEN,
            "ended_at": None,
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": None,
        }
        self.batches.append(batch)
        self.requests.append(asked["requests"])
        return web.json_response(batch)

    async def _list(self, request: web.Request) -> web.Response:
        """The latest first, two to a page at most."""
        ids = [batch["id"] for batch in reversed(self.batches)]
        start = ids.index(request.query["after_id"]) + 1 if "after_id" in request.query else 0
        most = min(2, int(request.query.get("limit", 20)))
        page = list(reversed(self.batches))[start : start + most]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return web.json_response({"data": page, "has_more": start + most < len(ids), **ends})

    async def _look(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"].removeprefix("msgbatch_"))
        batch = self.batches[number]
        if batch["processing_status"] != "ended" and self.looked.is_set() and self.open.is_set():
            lines = self.results(number, self.requests[number]) or [succeeded(one) for one in reversed(self.requests[number])]
            # Nobody is to follow this to where the key does not belong.
            elsewhere = "http://127.0.0.1:9/v1/results"
            counts = {**dict.fromkeys(batch["request_counts"], 0), "succeeded": len(self.requests[number])}
            batch |= {"processing_status": "ended", "ended_at": WHEN, "results_url": elsewhere, "request_counts": counts}
            self.files[batch["id"]] = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
        self.looked.set()
        return web.json_response(batch)

    async def _content(self, request: web.Request) -> web.Response:
        found = self.files.get(request.match_info["id"])
        return web.Response(body=found, content_type="application/x-jsonl") if found else refuse(404, "not_found_error")

    def asked(self, number: int) -> set[str]:
        return {text_of(one) for one in self.requests[number]}


# ---------------------------------------------------------------- gathered and merged


async def test_requests_go_in_one_and_results_are_found_by_their_ids(tmp_path: Path) -> None:
    texts = [f"task {number}" for number in range(20)]
    async with Anthropic() as server:
        policy = BatchPolicy(settings(server, extra={"stop_sequences": ["END"], "seed": None}), tmp_path)
        told = Conversation(messages=(Message(role="system", content="Be brief."), *ask("told").messages))
        told_so, *turns = await asyncio.gather(
            policy.complete(told, Sampling(temperature=0.5, top_p=0.9, max_tokens=7)),
            *(policy.complete(ask(text), Sampling()) for text in texts),
        )
        assert [turn.message.content for turn in turns] == [f"to {text}" for text in texts] and told_so.message.content == "to told"
        assert (turns[0].prompt_tokens, turns[0].sampled_tokens, turns[0].tokens.stop) == (100, 12, "stop")
        assert len(server.batches) == 1 and server.probes == 2
        asked_of = {text_of(one): one["params"] for one in server.requests[0]}
        usual = {"model": "m", "stop_sequences": ["END"]}
        assert asked_of["task 3"] == usual | {"max_tokens": 256, "messages": [{"role": "user", "content": "task 3"}]}
        assert asked_of["told"] == usual | {
            "max_tokens": 7,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": "told"}],
            "temperature": 0.5,
            "top_p": 0.9,
        }
        seeds = await asyncio.gather(*(policy.complete(ask("Hi"), Sampling(seed=seed)) for seed in (1, 2, 2)))
        await policy.close()
        assert len(seeds) == 3 and len(server.requests[1]) == 2  # tries that nothing in the request tells apart are asked one by one


async def test_how_an_answer_ends(tmp_path: Path) -> None:
    thought = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    said = {
        "long": {"stop": "max_tokens"},
        "full": {"stop": "model_context_window_exceeded"},
        "empty": {"content": []},
        "thought": {"content": [*thought, {"type": "text", "text": "4"}]},
        "cut": {"stop": "refusal", "stop_details": {"type": "refusal", "category": "bio", "explanation": None}},
        "refused": {"stop": "refusal", "content": [], "stop_details": {"type": "refusal", "category": "cyber", "explanation": None}},
        "called": {"stop": "tool_use", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
        "paused": {"stop": "pause_turn"},
    }
    # ``message`` takes the content as text; blocks replace what it made of it.
    made = {
        text: {"stop_reason": how.get("stop", "end_turn"), **{k: v for k, v in how.items() if k != "stop"}} for text, how in said.items()
    }
    async with Anthropic() as server:
        server.results = lambda number, requests: [
            {"custom_id": one["custom_id"], "result": {"type": "succeeded", "message": message(one["params"]) | made[text_of(one)]}}
            for one in requests
        ]
        policy = BatchPolicy(settings(server), tmp_path)
        turns = await asyncio.gather(*(policy.complete(ask(text), Sampling()) for text in said), return_exceptions=True)
        await policy.close()
        found = dict(zip(said, turns, strict=True))
        assert [found[text].tokens.stop for text in ("long", "full", "empty")] == ["length", "length", "stop"]
        assert found["empty"].message.content == "" and found["thought"].message.content == "4"
        assert found["thought"].message.reasoning == "Hm."
        assert isinstance(found["cut"], ContentFiltered)
        refused = found["refused"]
        assert isinstance(refused, PolicyError) and not isinstance(refused, ContentFiltered) and refused.failure == "content_filter"
        assert "refused the task itself (refusal: cyber)" in line(refused)
        for text, why in (("called", "a block of type 'tool_use'"), ("paused", "the stop_reason 'pause_turn'")):
            error = found[text]
            assert isinstance(error, PolicyError) and error.failure == "malformed" and why in line(error)
        assert len(server.batches) == 1  # each is paid for
        await asked(server, tmp_path, "cut", "refused")
        assert len(server.batches) == 1


# ---------------------------------------------------------------- killed


async def test_killed_between_submission_and_result(tmp_path: Path) -> None:
    async with Anthropic() as server:
        await killed_waiting(server, settings(server), tmp_path / "a", tmp_path / "left", "one", "two")
        assert await asked(server, tmp_path / "left", "two", "one") == ["to two", "to one"]
        assert await asked(server, tmp_path / "left", "one", "new") == ["to one", "to new"]
        assert len(server.batches) == 2 and server.asked(1) == {"new"}


@pytest.mark.parametrize(("when", "after"), [(LIST, True), (POST, False), (POST, True)])
async def test_killed_while_it_submits(when: str, after: bool, tmp_path: Path) -> None:
    """A batch that was made though nobody heard of it is found among others, before and after it, of as many requests and of more."""
    async with Anthropic() as server:
        for other in range(3):
            await asked(server, tmp_path / f"before {other}", "x", "y")
        await killed(server, tmp_path / "a", tmp_path / "left", when, "one", "two", after=after)
        await asked(server, tmp_path / "after", "x", "y")
        await asked(server, tmp_path / "more", "x", "y", "z")
        bought = len(server.batches)
        assert await asked(server, tmp_path / "left", "one", "two") == ["to one", "to two"]
        assert sum(server.asked(number) == {"one", "two"} for number in range(len(server.batches))) == 1
        assert len(server.batches) == bought + (not (when == POST and after))


@pytest.mark.parametrize("made", [False, True])
async def test_overloaded_or_an_answer_lost_at_submission(made: bool, tmp_path: Path) -> None:
    async with Anthropic() as server:
        troubles = 3 if not made else 1

        async def overloaded(request: web.Request) -> web.Response | None:
            nonlocal troubles
            troubles -= 1
            if troubles < 0:
                return None
            if made:
                await server._create(request)
            return refuse(529, "overloaded_error", "Overloaded")

        server.hooks[POST] = overloaded
        assert await asked(server, tmp_path, "one") == ["to one"] and len(server.batches) == 1 and troubles <= 0


async def test_a_full_queue_waits_for_batches_of_ours_however_long_they_take(tmp_path: Path) -> None:
    async with Anthropic() as server:
        refused = asyncio.Event()
        sent = 0

        async def full(_: web.Request) -> web.Response | None:
            nonlocal sent
            sent += 1
            if sent > 1 and not server.open.is_set():
                await server.looked.wait()  # the first is under way
                refused.set()
                return refuse(429, "rate_limit_error", "Too many requests in the processing queue")
            return None

        server.open.clear()
        server.hooks[POST] = full
        asking = asyncio.create_task(asked(server, tmp_path, "one", "two", batch=replace(server.batch, size=1), patience=0.0))
        for _ in range(3):  # more often than such patience has it
            await refused.wait()
            refused.clear()
        server.open.set()
        assert await asking == ["to one", "to two"] and len(server.batches) == 2


# ---------------------------------------------------------------- what goes wrong


async def test_results_that_are_none_missing_twice_and_unknown(tmp_path: Path) -> None:
    def results(number: int, requests: list[dict[str, Any]]) -> list[Line] | None:
        if number:
            return None
        by = {text_of(one): one for one in requests}
        return [
            b'{"custom_id": "half a li',
            b"",
            b"\xff\xfe",
            b"[" * 100_000,
            b"3",
            errored(by["twice"], "api_error"),
            succeeded(by["twice"], "first"),
            succeeded(by["twice"], "second"),
            succeeded(by["twice"]) | {"custom_id": "nobody's"},
            {"custom_id": by["strange"]["custom_id"], "result": {"type": "asleep"}},
            {"custom_id": by["no message"]["custom_id"], "result": {"type": "succeeded", "message": {"hello": 1}}},
        ]

    async with Anthropic() as server:
        server.results = results
        policy = BatchPolicy(settings(server), tmp_path)
        twice, missing, strange, other = await all_of(policy, "twice", "missing", "strange", "no message")
        await policy.close()
        assert (twice, missing, strange) == ("first", "to missing", "to strange")
        assert isinstance(other, PolicyError) and other.failure == "malformed" and "something else than a message" in line(other)
        assert server.asked(1) == {"missing", "strange"} and policy.counts["malformed"] >= 7
        assert await asked(server, tmp_path, "twice") == ["first"] and len(server.batches) == 2


async def test_every_class_of_error_is_told_by_the_same_rules(tmp_path: Path) -> None:
    says: dict[str, Callable[[dict[str, Any]], Line]] = {
        "long": lambda one: errored(one, "invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
        "bad": lambda one: errored(one, "invalid_request_error", "max_tokens: 90000 > 8192"),
        "gone": lambda one: errored(one, "not_found_error", "model: m"),
        "spent": lambda one: errored(one, "billing_error", "pay"),
        "busy": lambda one: errored(one, "rate_limit_error"),
        "full": lambda one: errored(one, "overloaded_error"),
        "broke": lambda one: errored(one, "api_error"),
        "new": lambda one: errored(one, "another_error"),
        "expired": lambda one: {"custom_id": one["custom_id"], "result": {"type": "expired"}},
        "canceled": lambda one: {"custom_id": one["custom_id"], "result": {"type": "canceled"}},
    }
    async with Anthropic() as server:
        server.results = lambda number, requests: [says[text_of(one)](one) for one in requests]
        found = dict(zip(says, await asked(server, tmp_path, *says, retries=1), strict=True))
        assert isinstance(found["long"], ContextOverflow) and all(line(error) for error in found.values())
        assert {text: error.failure for text, error in found.items()} == {
            "long": "context_length", "bad": "refused", "gone": "refused", "spent": "refused", "busy": "throttled", "full": "overloaded",
            "broke": "overloaded", "new": "overloaded", "expired": "overloaded", "canceled": "overloaded",
        }  # fmt: skip
        assert len(server.batches) == 2 and server.asked(1) == {"busy", "full", "broke", "new", "expired", "canceled"}
        server.results = lambda number, requests: None
        assert await asked(server, tmp_path, "expired", "canceled") == ["to expired", "to canceled"]
        assert isinstance((await asked(server, tmp_path, "long"))[0], ContextOverflow) and len(server.batches) == 3


async def test_a_batch_cancelled_elsewhere_stops_the_run(tmp_path: Path) -> None:
    def results(number: int, requests: list[dict[str, Any]]) -> list[Line] | None:
        if number:
            return None
        server.batches[0]["cancel_initiated_at"] = WHEN
        first, *others = requests
        return [*({"custom_id": one["custom_id"], "result": {"type": "canceled"}} for one in others), succeeded(first)]

    async with Anthropic() as server:
        server.results = results
        one, two = await asked(server, tmp_path, "one", "two")
        assert one == "to one" and isinstance(two, Stopped) and "batch msgbatch_0 was cancelled at" in line(two)
        assert await asked(server, tmp_path, "one", "two") == ["to one", "to two"] and server.asked(1) == {"two"}


async def test_answers_that_are_cut_or_are_none_are_read_again_and_not_bought_again(tmp_path: Path) -> None:
    """Hung up in mid-results, half a file that looks whole, a page of HTML, nothing at all; a 404 that passes, as it does there."""
    async with Anthropic() as server:
        whole = [json.dumps({"custom_id": "x", "result": {}}).encode() + b"\n"]
        answers = [web.Response(text="<html>wait</html>"), web.Response(), refuse(404, "not_found_error")]
        answers += [web.Response(body=whole[0] + whole[0][:9])]
        hung = 0

        async def cut(request: web.Request) -> web.Response | None:
            nonlocal hung
            if answers:
                return answers.pop()
            hung += 1
            if hung == 1:
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(whole[0])
                assert request.transport is not None
                request.transport.close()
            return None

        looks = [refuse(404, "not_found_error"), web.Response(text="<html>")]

        async def away(_: web.Request) -> web.Response | None:
            return looks.pop() if looks else None

        server.hooks |= {RESULTS: cut, LOOK: away}
        assert await asked(server, tmp_path, "one", "two") == ["to one", "to two"]
        assert len(server.batches) == 1 and not answers and not looks and hung == 2


async def test_a_batch_that_is_gone_or_in_a_state_that_nobody_knows(tmp_path: Path) -> None:
    async with Anthropic() as server:

        async def asleep(_: web.Request) -> web.Response:
            return web.json_response(server.batches[0] | {"processing_status": "asleep"})

        async def gone(_: web.Request) -> web.Response:
            return refuse(404, "not_found_error", "No such batch")

        server.hooks[LOOK] = asleep
        (error,) = await asked(server, tmp_path, "one", patience=0.0)
        assert (
            isinstance(error, PolicyError)
            and error.failure == "malformed"
            and "says of batch msgbatch_0 that it is 'asleep'" in line(error)
        )
        server.hooks[LOOK] = gone
        (error,) = await asked(server, tmp_path, "one", patience=0.0)
        assert isinstance(error, PolicyError) and error.failure == "refused"
        assert "No such batch (not_found_error); give the key that msgbatch_0 was submitted with, or delete" in line(error)
        server.hooks.clear()
        assert await asked(server, tmp_path, "one") == ["to one"] and len(server.batches) == 1


async def test_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent as x-api-key to one server only, in no file and no message; a wrong one is said so by its name."""
    monkeypatch.setenv("TEST_KEY", "sk-ant-very-secret")
    async with Anthropic() as server:
        assert await asked(server, tmp_path, "one", api_key_env="TEST_KEY") == ["to one"]
        assert {headers.get("x-api-key") for headers in server.headers} == {"sk-ant-very-secret"}
        assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

        async def wrong(_: web.Request) -> web.Response:
            return refuse(401, "authentication_error", "invalid x-api-key sk-ant-very-secret")

        server.hooks["GET /v1/models/m"] = wrong
        (error,) = await asked(server, tmp_path, "two", api_key_env="TEST_KEY")
        assert isinstance(error, SettingsError) and "refuses the key in TEST_KEY" in line(error) and "secret" not in line(error)
        server.hooks = {POST: wrong}
        (error,) = await asked(server, tmp_path, "two", api_key_env="TEST_KEY")
        assert isinstance(error, PolicyError) and error.failure == "refused" and "secret" not in line(error)


async def test_a_server_without_message_batches(tmp_path: Path) -> None:
    async def none(_: web.Request) -> web.Response:
        return refuse(404, "not_found_error")

    async with Anthropic() as server:
        server.hooks |= {POST: none, LIST: none}
        (error,) = await asked(server, tmp_path / "a", "one")
        assert isinstance(error, SettingsError) and "no batch API at POST /messages/batches" in line(error)
        (error,) = await asked(server, tmp_path / "b", "one", model="n")
        assert isinstance(error, SettingsError) and "answered 404: model: n (not_found_error)" in line(error)


# ---------------------------------------------------------------- settings and prices


HOSTED = Endpoint(base_url="https://api.anthropic.com/v1", model="claude-haiku-4-5", batch=Batch())


def test_whose_batches_they_are() -> None:
    assert HOSTED.speaks == "anthropic" and replace(HOSTED, batch=None).speaks == "openai"
    other = replace(HOSTED, base_url="https://api.openai.com/v1")
    assert other.speaks == "openai" and replace(other, batch=Batch(api="anthropic")).speaks == "anthropic"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        *(
            ({"extra": {name: 1}}, f"extra.{name} is unknown to Anthropic's Messages API; take it out")
            for name in ("seed", "top_logprobs", "min_p")
        ),
        ({"extra": {"response_format": {}}}, "use output_config"),
        ({"token_ids": True}, "token_ids is set, but Anthropic's Messages API gives none"),
        ({"logprobs": True}, "logprobs is set, but Anthropic's Messages API gives none"),
        ({"max_tokens_field": "max_completion_tokens"}, "has max_tokens"),
        ({"batch": Batch(window="7d")}, "batch.window is '7d', but Anthropic's batches have 24h"),
        ({"batch": Batch(max_mb=256)}, "batch.max_mb is 256, but Anthropic takes at most 244"),
    ],
)
def test_what_the_api_has_no_words_for_is_refused_at_the_start(more: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        replace(HOSTED, **more)
    assert said in line(caught.value)


async def test_what_a_task_or_a_model_cannot_have_is_refused_before_anything_is_bought(tmp_path: Path) -> None:
    async with Anthropic() as server:
        policy = BatchPolicy(settings(server, extra={"top_a": 1}), tmp_path)
        tools = Conversation(messages=ask("Hi").messages, tools=({"type": "function", "function": {"name": "f"}},))
        named = Conversation(messages=(Message(role="user", content="Hi", name="Bo"),))
        for conversation, sampling, said in (
            (tools, Sampling(), "has tools, or messages with names"),
            (named, Sampling(), "has tools, or messages with names"),
            (ask("Hi"), Sampling(temperature=1.5), "temperature is 1.5, but Anthropic's Messages API takes at most 1"),
            (ask("Hi"), Sampling(), "top_a: Extra inputs are not permitted (invalid_request_error); it does not take top_a"),
        ):
            with pytest.raises(SettingsError) as caught:
                await policy.complete(conversation, sampling)
            assert said in line(caught.value)
        await policy.close()
        assert not server.batches


async def test_it_is_opened_by_its_address_at_half_the_list_price(tmp_path: Path) -> None:
    model = Model(name=HOSTED.model, path=HOSTED.urls[0], fingerprint="f", kind="endpoint", lineage=Lineage(base="m"))
    engine = Endpoint(batch=Batch())
    policy, why = open_policy(model, engine, tmp_path)
    await policy.close()
    assert "in Message Batches, which take no seed; they lie in" in why
    full, half = price_of(model, replace(engine, batch=None), {})[0], price_of(model, engine, {})[0]
    assert full is not None and half == Price(prompt=full.prompt / 2, sampled=full.sampled / 2) and half.sampled > 0
