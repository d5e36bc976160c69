"""Servers that misbehave, over real connections on loopback; and the choice among them, with a clock of our own."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace

from conftest import held_port, later
from sharpen.agents.base import PolicyAgent
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import ContentFiltered, ContextOverflow, PolicyError, SettingsError
from sharpen.policies.balance import START, Balancer, Limit, Server
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.endpoint import Endpoint, EndpointPolicy
from sharpen.policies.endpoint_start import same_model
from sharpen.policies.endpoint_wire import opening, retry_after
from sharpen.records import Message, Task, ToolCall, Trajectory, TurnTokens, Verdict
from sharpen.sampling import collect
from sharpen.store.segments import Segments

Reply = web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]


def completion(content: str | None = "hello", finish: str = "stop", model: str | None = "m", **more: Any) -> web.Response:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    choice = {"message": message, "finish_reason": finish, **more.pop("choice", {})}
    usage = more.pop("usage", {"prompt_tokens": 7, "completion_tokens": 3})
    return web.json_response({"choices": [choice], "usage": usage, **({"model": model} if model else {}), **more})


def refusal(status: int, message: str, **more: Any) -> web.Response:
    headers = more.pop("headers", {})
    return web.json_response({"error": {"message": message, **more}}, status=status, headers=headers)


class Fake:
    """A server with a script: each request takes the next of ``replies``, the last one for ever. ``bodies`` is what it was asked, probes left out."""

    def __init__(self, *replies: Reply, model: str = "m", port: int = 0) -> None:
        self.replies = list(replies) or [completion()]
        self.models: Any = {"data": [{"id": model}]}
        self.documents: dict[str, Any] = {}
        self.bodies: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self.on_probe: Callable[[dict[str, Any]], web.Response] = lambda body: completion(model=model)
        self.port = port
        self.most = self.out = 0

    async def __aenter__(self) -> Fake:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/{path:.*}", self._get)
        self.runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self.runner.setup()
        if not self.port:
            self.held, self.port = held_port()  # for another that comes in its place
        await web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _get(self, request: web.Request) -> web.Response:
        if request.path == "/v1/models" and self.models is not None:
            return self.models if isinstance(self.models, web.Response) else web.json_response(self.models)
        if request.path in self.documents:
            return web.json_response(self.documents[request.path])
        return web.Response(status=404, text="<h1>no</h1>")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("max_tokens", body.get("max_completion_tokens")) == 1:
            self.probes.append(body)
            return self.on_probe(body)
        self.bodies.append(body)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.out += 1
        self.most = max(self.most, self.out)
        try:
            if not isinstance(reply, web.Response):
                assert callable(reply)
                return await reply(request)
            return web.Response(body=reply.body, status=reply.status, headers=reply.headers)
        finally:
            self.out -= 1


def settings(*servers: Fake | str, **more: Any) -> Endpoint:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    return Endpoint(**{"base_urls": urls, "model": "m", "backoff": 0.01, "retries": 2, "timeout": 30.0, "patience": 600.0} | more)


def ask(text: str = "Hi") -> Conversation:
    return Conversation(messages=(Message(role="user", content=text),))


async def once(*servers: Fake | str, conversation: Conversation | None = None, **more: Any) -> Turn:
    policy = EndpointPolicy(settings(*servers, **more))
    try:
        return await policy.complete(conversation or ask(), Sampling())
    finally:
        await policy.close()


def said(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """The one line."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- bad answers


async def cut(request: web.Request) -> web.StreamResponse:
    """Promises 1000 bytes, sends 20, hangs up."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"messa')
    assert request.transport is not None
    request.transport.close()
    return response


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return completion()


async def outlasts(request: web.Request) -> web.StreamResponse:
    """Hangs, and whoever asked has waited long enough at once."""
    later(60)
    return await hang(request)


HTML = web.Response(text="<html><body>Sign in</body></html>", content_type="text/html")
DEEP = web.Response(text="[" * 100_000)

MENDABLE: list[tuple[Reply, str, str]] = [
    (cut, "dead", "closed the connection before its answer was whole"),
    (hang_up, "dead", "closed the connection"),
    (outlasts, "dead", "did not answer within 30 s"),
    (HTML, "malformed", "something else than a chat completion: .*Sign in"),
    (DEEP, "malformed", "something else than a chat completion"),
    (web.Response(body=b'{"choices": [{"message": {"content": "\xff"}}]}'), "malformed", "something else than a chat completion"),
    (web.json_response({"choices": []}), "malformed", "something else than a chat completion"),
    (web.json_response({"choices": [{"message": {"content": 3}}]}), "malformed", "something else than a chat completion"),
    (completion(model="another"), "malformed", "was asked for 'm' and answered as 'another'"),
    (completion("", "abort"), "overloaded", "gave up the request"),
    (web.json_response({"error": {"code": 502, "message": "upstream"}}), "overloaded", "answered 502: upstream"),
    (refusal(500, "oh\nno"), "overloaded", "answered 500: oh no"),
]


@pytest.mark.parametrize(("reply", "failure", "message"), MENDABLE)
async def test_what_may_pass_is_outlived(reply: Reply, failure: str, message: str) -> None:
    async with Fake(reply, reply, completion("at last")) as server:
        policy = EndpointPolicy(settings(server))
        turn = await policy.complete(ask(), Sampling())
        await policy.close()
    assert turn.message.content == "at last" and policy.counts == {failure: 2}


@pytest.mark.parametrize(("reply", "failure", "message"), MENDABLE)
async def test_what_does_not_pass_is_one_line(reply: Reply, failure: str, message: str) -> None:
    async with Fake(reply) as server:
        with pytest.raises(PolicyError, match=message) as caught:
            await once(server)
    assert caught.value.failure == failure and said(caught).endswith("(tried 3 times)")


@pytest.mark.parametrize(
    ("reply", "failure", "message"),
    [
        (refusal(429, "pay", type="insufficient_quota"), "refused", "answered 429: pay (insufficient_quota)"),
        (refusal(429, "Quota exceeded for requests, limit: 0, model m"), "refused", "limit: 0"),
        (refusal(402, "no balance"), "refused", "answered 402: no balance"),
        (refusal(404, "no such model"), "refused", "answered 404: no such model"),
        (web.Response(status=301, headers={"Location": "https://elsewhere/v1"}), "refused", "redirects to https://elsewhere/v1"),
        (refusal(400, "flagged", code="content_filter"), "content_filter", "answered 400: flagged (content_filter)"),
        (web.json_response({"detail": "no"}, status=422), "refused", "answered 422: no"),
    ],
)
async def test_what_cannot_pass_is_said_at_once(reply: web.Response, failure: str, message: str) -> None:
    async with Fake(reply) as server:
        with pytest.raises(PolicyError, match=re.escape(message)) as caught:
            await once(server)
        assert len(server.bodies) == 1
    assert caught.value.failure == failure and not isinstance(caught.value, ContextOverflow | ContentFiltered) and said(caught)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 4096 tokens.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "the request exceeds the available context size. try increasing it",
        "Requested tokens (5000) exceed context window of 4096",
        "prompt is too long: 5000 tokens > 4096 maximum",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "`inputs` tokens + `max_new_tokens` must be <= 4096",
    ],
)
async def test_overflow_in_every_servers_words(words: str) -> None:
    async with Fake(refusal(400, words)) as server:
        with pytest.raises(ContextOverflow) as caught:
            await once(server)
    assert caught.value.failure == "context_length"


async def test_the_request_repeated_in_an_error_is_not_the_error() -> None:
    """FastAPI's 422 holds the whole input: a task about context windows is no overflow."""
    detail = [{"loc": ["body", "messages"], "msg": "bad", "input": "the maximum context length, and the content_filter"}]
    async with Fake(web.json_response({"detail": detail}, status=422)) as server:
        with pytest.raises(PolicyError, match=r"answered 422: messages: bad$") as caught:
            await once(server)
    assert caught.value.failure == "refused"


def talk(*turns: str) -> Conversation:
    """A conversation in which the policy has spoken ``turns``."""
    messages = [Message(role="user", content="Go")]
    for text in turns:
        messages += [Message(role="assistant", content=text), Message(role="user", content="on")]
    return Conversation(messages=tuple(messages), turns=tuple(TurnTokens() for _ in turns))


async def test_a_filter_is_the_policys_failure_once_it_spoke() -> None:
    filtered = refusal(400, "flagged", code="content_filter")
    async with Fake(completion("half", "content_filter")) as server:
        with pytest.raises(ContentFiltered):
            await once(server)
    async with Fake(filtered) as server:
        with pytest.raises(ContentFiltered, match="flagged"):
            await once(server, conversation=talk("my own words"))
        with pytest.raises(PolicyError, match="flagged") as caught:
            await once(server, conversation=talk())
    assert not isinstance(caught.value, ContentFiltered)


# ---------------------------------------------------------------- what the model wrote is kept


def call(id: str, arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}}


async def test_calls_as_the_model_wrote_them() -> None:
    """Arguments that are not JSON are the model's own words; ids that repeat, or are missing, are told apart."""
    calls = [call("c1", '{"at": "do'), call("c1", {"at": 1}), call("", "{}"), call("c0", None)]
    earlier = (
        Message(role="user", content="Go"),
        Message(role="assistant", content="", tool_calls=(ToolCall(id="c0", name="look", arguments="{}"),)),
        Message(role="tool", content="a door", tool_call_id="c0"),
    )
    async with Fake(completion(None, "tool_calls", message={"tool_calls": calls, "reasoning": "hm"})) as server:
        turn = await once(server, conversation=Conversation(messages=earlier, turns=(TurnTokens(),)))
    ids = [one.id for one in turn.message.tool_calls]
    assert [one.arguments for one in turn.message.tool_calls] == ['{"at": "do', '{"at":1}', "{}", "{}"]
    assert ids[0] == "c1" and len({*ids, "c0"}) == 5 and all(ids)
    assert turn.message.reasoning == "hm" and turn.message.content == ""


async def test_token_ids() -> None:
    ids = {"prompt_token_ids": [1, 2], "choice": {"token_ids": [3, 4]}}
    async with Fake(completion(**ids), completion()) as server:
        server.on_probe = lambda body: completion(**(ids if body.get("return_token_ids") else {}))
        policy = EndpointPolicy(settings(server, token_ids=True, retries=0))
        turn = await policy.complete(ask(), Sampling())
        assert policy.gives_token_ids and turn.tokens == TurnTokens(prompt=(1, 2), output=(3, 4))
        assert server.bodies[0]["return_token_ids"] is True
        with pytest.raises(PolicyError, match="gives no token ids"):
            await policy.complete(ask(), Sampling())
        await policy.close()
    async with Fake() as server:
        with pytest.raises(SettingsError, match=r"gives no token ids .*set engine.token_ids: false"):
            await once(server, token_ids=True)


async def test_log_probabilities_are_those_of_what_was_drawn() -> None:
    told = {"choice": {"logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.25}]}}}
    async with Fake(*[completion(**told)] * 2, completion()) as server:
        server.on_probe = lambda body: completion(**(told if body.get("logprobs") else {}))
        policy = EndpointPolicy(settings(server, logprobs=True, retries=0))
        assert (await policy.complete(ask(), Sampling())).tokens.logprob == -1.75
        assert (await policy.complete(ask(), Sampling(temperature=0))).tokens.logprob is None
        with pytest.raises(PolicyError, match="gives no log-probabilities"):
            await policy.complete(ask(), Sampling())
        await policy.close()
    async with Fake() as server:
        with pytest.raises(SettingsError, match=r"gives no log-probabilities .*set engine.logprobs: false"):
            await once(server, logprobs=True)


# ---------------------------------------------------------------- the start


async def refused_at_the_start(server: Fake, message: str, **more: Any) -> str:
    with pytest.raises(SettingsError, match=message) as caught:
        await once(server, **more)
    assert not server.bodies
    return said(caught)


async def test_a_model_that_is_not_served() -> None:
    async with Fake(model="llama-3") as server:
        await refused_at_the_start(server, r"does not serve 'llama3'; did you mean 'llama-3'\?", model="llama3")


@pytest.mark.parametrize(
    ("asked", "models", "answers"),
    [
        ("m", {"data": [{"id": "m", "root": "/w"}, {"id": "other", "root": "/w"}]}, "other"),  # vLLM answers as the first of its names
        ("m", {"data": [{"id": "file.gguf", "aliases": ["m"]}]}, "file.gguf"),
        ("m", {"data": [{"id": "m:latest"}]}, "m"),
        ("gpt-4o", None, "gpt-4o-2024-08-06"),
        ("m", web.Response(text="<html>"), "m"),
        ("m", {"data": []}, None),
    ],
)
async def test_other_names_of_the_same_model(asked: str, models: Any, answers: str | None) -> None:
    async with Fake(completion(model=answers)) as server:
        server.models, server.on_probe = models, lambda body: completion(model=answers)
        assert (await once(server, model=asked)).message.content == "hello"


def test_a_dated_name_is_the_same_model_a_larger_one_is_not() -> None:
    assert same_model("gpt-4", "gpt-4-0613") and same_model("mistral-large", "mistral-large-2411") and same_model("m", "m-2026-01-31")
    assert not same_model("llama-3", "llama-3-8") and not same_model("llama-3", "llama-3-8b") and not same_model("m", "m-")


async def test_a_setting_refused_after_others_were_taken_ends_the_run() -> None:
    """Not a server that came back as something else: waiting would not help."""
    async with Fake() as server:
        server.on_probe = lambda body: refusal(400, "temperature must be over 0") if body["temperature"] == 0 else completion()
        policy = EndpointPolicy(settings(server))
        await policy.complete(ask(), Sampling())
        with pytest.raises(SettingsError, match="it does not take temperature as it is set"):
            await policy.complete(ask(), Sampling(temperature=0))
        await policy.close()


async def test_another_models_name() -> None:
    async with Fake() as server:
        server.models = {"data": [{"id": "m", "root": "/a"}, {"id": "other", "root": "/b"}]}
        server.on_probe = lambda body: completion(model="other")
        await refused_at_the_start(server, r"asked for 'm' and answered as 'other'; .* engine.answers_as: other")
        server.replies = [completion(model="other")]
        assert await once(server, answers_as="other")


async def test_a_wrong_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret\n")
    for replied in ("probe", "models"):
        async with Fake() as server:
            wrong = refusal(401, "Incorrect API key provided: sk-secret")
            server.on_probe = lambda body, wrong=wrong: wrong  # type: ignore[misc]
            server.models = wrong if replied == "models" else None
            line = await refused_at_the_start(server, "refuses the key in SOME_KEY", api_key_env="SOME_KEY")
            assert "sk-secret" not in line
    async with Fake() as server:
        server.models = refusal(401, "who are you?")
        await refused_at_the_start(server, "wants a key; name the environment variable")


@pytest.mark.parametrize("given", ["sk-proj-abc123", "hf_AbCdEf", "AIzaSyD-x"])
def test_a_key_in_the_place_of_its_name_is_not_shown(given: str) -> None:
    with pytest.raises(SettingsError, match="not the key itself") as caught:
        Endpoint(base_url="http://h/v1", model="m", api_key_env=given)
    assert given not in str(caught.value)
    with pytest.raises(SettingsError, match="user name or password") as caught:
        Endpoint(base_url=f"http://me:{given}@h/v1", model="m")
    assert given not in str(caught.value)


def test_settings_that_contradict() -> None:
    for wrong in (
        {"base_url": "http://h/v1", "base_urls": ("http://i/v1",)},
        {"base_urls": ("http://h/v1", "http://h/v1/")},
        {"base_url": "h/v1"},
        {"extra": {"temperature": 0}},
        {"extra": {"top_k": None}},
    ):
        with pytest.raises(SettingsError):
            Endpoint(model="m", **wrong)  # type: ignore[arg-type]


SCHEMA = {
    "paths": {
        "/v1/chat/completions": {
            "post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Chat"}}}}}
        }
    },
    "components": {
        "schemas": {
            "Base": {"properties": dict.fromkeys(("model", "messages", "temperature", "top_p", "max_tokens", "seed"))},
            "Chat": {"allOf": [{"$ref": "#/components/schemas/Base"}, {"properties": {"top_k": {}}}]},
        }
    },
}


def strict(fields: set[str]) -> Callable[[dict[str, Any]], web.Response]:
    """A server that reads ``fields`` and ignores the rest."""

    def probe(body: dict[str, Any]) -> web.Response:
        wrong = [name for name in fields if body.get(name) in ("wrong", {"wrong": "type"})]
        return refusal(400, f"{wrong[0]} has a wrong type") if wrong else completion()

    return probe


async def test_a_setting_that_the_server_does_not_know() -> None:
    async with Fake() as server:
        server.documents["/openapi.json"] = SCHEMA
        await refused_at_the_start(server, r"has no field 'topk'; did you mean 'top_k'\?", extra={"topk": 20})
        assert await once(server, extra={"top_k": 20})
        assert server.bodies[-1]["top_k"] == 20 and all(body["top_k"] == 20 for body in server.probes[1:])


async def test_a_setting_that_the_server_ignores_in_silence() -> None:
    extra = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}}
    async with Fake() as server:
        server.on_probe = strict({"top_k"})
        await refused_at_the_start(server, "does not read 'chat_template_kwargs'", extra=extra)
        assert await once(server, extra=extra, check=False)
        server.on_probe = strict(set(extra))
        assert await once(server, extra=extra)
        # llama.cpp says what it knows; chat_template_kwargs it takes with any type.
        server.on_probe = strict(set())
        server.documents["/props"] = {"default_generation_settings": {"params": {"top_k": 40}}}
        assert await once(server, extra=extra)


async def test_a_setting_that_the_server_refuses() -> None:
    async with Fake() as server:
        server.on_probe = lambda body: refusal(422, "Extra inputs are not permitted: min_p") if "min_p" in body else completion()
        await refused_at_the_start(server, "answered 422: .*min_p; it does not take min_p as it is set", extra={"min_p": 0.1})
        server.on_probe = lambda body: (
            refusal(400, "use 'max_completion_tokens', not 'max_tokens'") if "max_tokens" in body else completion()
        )
        await refused_at_the_start(server, "set engine.max_tokens_field: max_completion_tokens")
        assert await once(server, max_tokens_field="max_completion_tokens")
        server.bodies.clear()
        server.on_probe = lambda body: refusal(400, "unknown: seed") if "seed" in body else completion()
        await refused_at_the_start(server, "leave it out with engine.extra: {seed: null}")
        assert await once(server, extra={"seed": None}) and "seed" not in server.bodies[-1]
        server.bodies.clear()
        server.on_probe = lambda body: refusal(404, "not here")
        await refused_at_the_start(server, "404: not here; base_urls end where")


async def test_tools_that_the_model_never_sees() -> None:
    """llama.cpp takes tools for a model whose template has no place for them, and says nothing."""
    tools = ({"type": "function", "function": {"name": "look"}},)
    talk = Conversation(messages=ask().messages, tools=tools)

    def showing(tokens: int) -> Callable[[dict[str, Any]], web.Response]:
        return lambda body: completion(usage={"prompt_tokens": 30 + ("tools" in body) * tokens, "completion_tokens": 1})

    async with Fake() as server:
        server.on_probe = showing(0)
        with pytest.raises(SettingsError, match="does not show tools to the model: the prompt is 30 tokens with and without"):
            await once(server, conversation=talk)
        assert await once(server)
        server.on_probe = showing(20)
        assert await once(server, conversation=talk)
        server.on_probe = lambda body: refusal(400, "tools need --enable-auto-tool-choice") if "tools" in body else completion()
        with pytest.raises(SettingsError, match="--enable-auto-tool-choice"):
            await once(server, conversation=talk)


async def test_nobody_there_at_the_start() -> None:
    async with Fake() as server:
        url = server.url
        await server.runner.cleanup()
        with pytest.raises(SettingsError, match=r"no server can be used: .* cannot be reached: .*\(tried 3 times\)") as caught:
            await once(url)
        assert said(caught)
        with pytest.raises(SettingsError, match="cannot be reached"):
            policy = EndpointPolicy(settings(url))
            await asyncio.gather(*(policy.complete(ask(), Sampling()) for _ in range(32)))


async def test_one_check_for_all_who_wait() -> None:
    async with Fake() as server:
        policy = EndpointPolicy(settings(server))
        await asyncio.gather(*(policy.complete(ask(), Sampling()) for _ in range(50)))
        await policy.complete(ask(), Sampling(temperature=0.5))
        await policy.close()
        assert [body["temperature"] for body in server.probes] == [1.0, 0.5] and len(server.bodies) == 51


# ---------------------------------------------------------------- throttling


def quota(each: int, window: float) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """``each`` answers in every ``window`` seconds, else 429 without a word on how long."""
    loop = asyncio.get_running_loop()
    given: list[float] = []

    async def reply(_: web.Request) -> web.StreamResponse:
        now = loop.time()
        given[:] = [at for at in given if now - at < window]
        if len(given) >= each:
            return refusal(429, "slow down")
        given.append(now)
        return completion()

    return reply


async def test_a_quota_window_is_outlived() -> None:
    """Ten answers a window: more than its retries would last, far less than its patience."""
    async with Fake(quota(10, 1.0)) as server:
        policy = EndpointPolicy(settings(server, retries=0))
        turns = await asyncio.gather(*(policy.complete(ask(str(i)), Sampling()) for i in range(35)))
        await policy.close()
        assert len(turns) == 35
        assert policy.counts["throttled"] == len(server.bodies) - 35 < 100


async def test_retry_after_holds_the_whole_server_back() -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def reply(_: web.Request) -> web.StreamResponse:
        times.append(loop.time())
        return refusal(429, "wait", headers={"Retry-After": "1"}) if len(times) == 1 else completion()

    async with Fake(reply) as server:
        policy = EndpointPolicy(settings(server, max_concurrent=1))
        await asyncio.gather(*(policy.complete(ask(), Sampling()) for _ in range(5)))
        await policy.close()
    assert times[1] - times[0] >= 1.0 and len(times) == 6


async def test_patience_ends() -> None:
    async with Fake(refusal(429, "slow down")) as server:
        with pytest.raises(PolicyError, match=r"answered 429: slow down \(no server has answered within the patience of 0.3 s\)") as caught:
            await once(server, patience=0.3)
        assert caught.value.failure == "throttled"
        server.replies = [refusal(429, "come back tomorrow", headers={"Retry-After": "86400"})]
        with pytest.raises(PolicyError, match=r"tomorrow \(no server has answered within the patience of 80000 s"):
            await once(server, patience=80_000)  # it is known at once that this will be over


async def test_the_limit_is_found() -> None:
    """A server that takes eight at once and refuses the ninth: about eight are out, and few are refused."""

    async def eight(_: web.Request) -> web.StreamResponse:
        if server.out > 8:
            return refusal(429, "at most 8", headers={"Retry-After": "0.01"})
        await asyncio.sleep(0.01)
        return completion()

    async with Fake(eight) as server:
        policy = EndpointPolicy(settings(server))
        await asyncio.gather(*(policy.complete(ask(), Sampling()) for _ in range(400)))
        await policy.close()
        assert policy.counts["throttled"] < 120


def test_retry_after() -> None:
    assert retry_after({"Retry-After": "2.5"}) == 2.5 and retry_after({"retry-after-ms": "250"}) == 0.25
    for odd in ("", "soon", "-1", "nan", "Mon, garbage", "Mon, 99 Foo 2026 99:99:99 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert retry_after({"Retry-After": odd}) == 0.0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e9


# ---------------------------------------------------------------- several servers


class AlwaysPass:
    name = "any"

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        return Verdict(key=trajectory.key, outcome="pass", verifier=self.name)


async def play(policy: EndpointPolicy, folder: Path, tries: int) -> AsyncGenerator[Trajectory, None]:
    tasks = [Task(key=f"t{i}", family=f"t{i}", prompt=(Message(role="user", content=f"task {i}"),)) for i in range(tries // 4)]
    agent = PolicyAgent("m", policy, "f", SingleTurn(), Sampling())
    wanted = [(task, index) for index in range(4) for task in tasks]
    trajectories, verdicts = Segments(folder / "t", Trajectory), Segments(folder / "v", Verdict)
    async for trajectory, _ in collect(agent, wanted, AlwaysPass(), trajectories, verdicts, concurrency=16):
        yield trajectory


MANY = 4000  # tries: more than are made before what is waited for has happened, however slow the machine


async def slowly(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(0.01)
    return completion()


async def test_a_server_dies_and_comes_back(tmp_path: Path) -> None:
    """One of two is killed with requests in flight, and started again: no try is lost, and it works again."""
    async with Fake(slowly) as stays:
        goes = await Fake(slowly).__aenter__()
        policy = EndpointPolicy(settings(stays, goes, retries=5))
        done, back, before = [], None, 0
        async with aclosing(play(policy, tmp_path, MANY)) as tries:
            async for trajectory in tries:
                done.append(trajectory)
                if len(done) == 40:
                    before = len(goes.bodies)
                    await goes.runner.cleanup()
                if len(done) == 120:
                    back = await Fake(slowly, port=goes.port).__aenter__()
                if back is not None and len(back.bodies) > 5:
                    break
        await policy.close()
        assert back is not None
        await back.runner.cleanup()
    assert {trajectory.stop for trajectory in done} == {"done"}
    assert {f"t{i}" for i in range(40 + 16)} <= {trajectory.key.task for trajectory in done}  # those in flight among them
    assert before > 5 and len(back.bodies) > 5 and policy.counts["dead"] >= 1


async def test_a_server_that_comes_back_as_another_model_is_left_alone(tmp_path: Path) -> None:
    """Whether that is seen by the questions after it was away, or, if it was back before anyone missed it, by the name on its answers."""

    async def as_another(request: web.Request) -> web.StreamResponse:
        await slowly(request)
        return completion(model="another")

    async with Fake(slowly) as stays:
        goes = await Fake(slowly).__aenter__()
        policy = EndpointPolicy(settings(stays, goes))
        done, back, met = [], None, 0
        async with aclosing(play(policy, tmp_path, MANY)) as tries:
            async for trajectory in tries:
                done.append(trajectory)
                if len(done) == 40:
                    await goes.runner.cleanup()
                    back = await Fake(as_another, port=goes.port, model="another").__aenter__()
                met = met or (len(done) if policy.counts["malformed"] else 0)
                if met and len(done) >= met + 80:
                    break
        await policy.close()
        assert back is not None
        await back.runner.cleanup()
    assert {trajectory.stop for trajectory in done} == {"done"} and policy.counts["malformed"] >= 1
    assert len(back.bodies) < 20  # of more than 80: those under way before its first answer told, if it was back that fast


@pytest.mark.parametrize("bad", [HTML, hang, refusal(503, "loading"), refusal(429, "slow down"), cut])
async def test_a_bad_server_does_not_harm_the_run(bad: Reply, tmp_path: Path) -> None:
    async with Fake(slowly) as good, Fake(bad) as other:
        policy = EndpointPolicy(settings(good, other, timeout=3.0 if bad is hang else 30.0))
        done = [trajectory async for trajectory in play(policy, tmp_path, 120)]
        await policy.close()
        assert {trajectory.stop for trajectory in done} == {"done"} and len(other.bodies) < 60


async def test_all_dead_ends_in_one_line(tmp_path: Path) -> None:
    """After patience each try is an error, and eight in a row end the stage."""
    async with Fake(slowly) as server:
        policy = EndpointPolicy(settings(server, patience=0.2))
        seen = 0
        with pytest.raises(PolicyError, match=r"8 tries in a row broke, the last with: .* cannot be reached") as caught:
            async for _ in play(policy, tmp_path, 400):
                seen += 1
                if seen == 40:
                    await server.runner.cleanup()
        await policy.close()
    assert said(caught)


async def test_failures_are_classed_in_the_store(tmp_path: Path) -> None:
    async with Fake(refusal(400, "flagged", code="content_filter")) as server:
        policy = EndpointPolicy(settings(server))
        done = [trajectory async for trajectory in play(policy, tmp_path, 40)]
        await policy.close()
        assert len(server.bodies) == 40  # asked once each: the same question gets the same answer
    assert {trajectory.stop for trajectory in done} == {"error"}
    assert all(re.match(r"content_filter: http.* answered 400: flagged", trajectory.error or "") for trajectory in done)


async def test_cancelled_requests_give_their_places_back() -> None:
    async with Fake(hang) as server:
        policy = EndpointPolicy(settings(server, max_concurrent=4))
        tasks = [asyncio.create_task(policy.complete(ask(), Sampling())) for _ in range(20)]
        while server.out < 4:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.replies = [completion()]
        assert await policy.complete(ask(), Sampling())
        assert [s.in_flight for s in policy._balancer.servers] == [0]
        await policy.close()


async def test_closing_frees_who_waits() -> None:
    async with Fake(hang) as server:
        policy = EndpointPolicy(settings(server, max_concurrent=2))
        tasks = [asyncio.create_task(policy.complete(ask(), Sampling())) for _ in range(6)]
        while server.out < 2:
            await asyncio.sleep(0)
        await policy.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["the policy m is closed"] * 6


# ---------------------------------------------------------------- the choice, with a clock of our own


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def balancer(n: int, most: int = 64, **more: Any) -> tuple[Balancer, Clock]:
    clock = Clock()
    servers = [Server(f"http://s{i}", Limit(most)) for i in range(n)]
    return Balancer(servers, **{"backoff": 1.0, "patience": 600.0, "retries": 5, "clock": clock} | more), clock


DEAD = PolicyError("gone", "dead")


def test_affinity() -> None:
    """An opening always meets the same server; openings spread; a server that goes moves only its own."""
    choice, clock = balancer(4)
    openings = [f"task {i}".encode() for i in range(400)]
    first = [choice.pick(opening) for opening in openings]
    assert first == [choice.pick(opening) for opening in openings]
    counts = [first.count(server) for server in choice.servers]
    assert min(counts) > 60
    gone = choice.servers[1]
    gone.until = clock.now + 10
    moved = [choice.pick(opening) for opening in openings]
    assert all(now is then for now, then in zip(moved, first, strict=True) if then is not gone) and gone not in moved
    clock.now += 10
    assert [choice.pick(opening) for opening in openings] == first


def test_a_full_server_spills_to_the_one_with_most_room() -> None:
    choice, _ = balancer(3)
    favourite = choice.pick(b"task")
    assert favourite is not None
    favourite.in_flight = int(favourite.limit.value)
    one, two = (server for server in choice.servers if server is not favourite)
    one.in_flight, two.in_flight = 5, 3
    assert choice.pick(b"task") is two
    assert choice.pick(b"task", avoid=two) is one
    one.in_flight = two.in_flight = START
    assert choice.pick(b"task") is None


def test_the_opening_is_what_tries_and_turns_share() -> None:
    shots = (Message(role="user", content="example"), Message(role="assistant", content="shown"))
    task = Message(role="user", content="task")
    first = Conversation(messages=(*shots, task))
    second = Conversation(messages=(*shots, task, Message(role="assistant", content="x"), task), turns=(TurnTokens(),))
    other = Conversation(messages=(*shots, Message(role="user", content="task 2")))
    assert opening(first) == opening(second) != opening(other)


async def test_set_aside_for_growing_spans_then_one_at_a_time() -> None:
    choice, clock = balancer(1)
    server = choice.servers[0]
    choice.last_answer = clock.now
    spans = []
    for _ in range(9):
        began = clock.now
        assert await choice.take(b"", began) is server
        assert choice.pick(b"") is None if server.dead else choice.pick(b"") is server
        choice.lost(server, began, DEAD, gone=True)
        spans.append(server.until - clock.now)
        clock.now = server.until
    assert spans == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    await choice.take(b"", clock.now)
    choice.answered(server, clock.now, 1)
    assert not server.dead and server.room(clock.now) == 1


async def test_three_lost_in_a_row_not_one() -> None:
    choice, clock = balancer(1)
    server = choice.servers[0]
    for n in (1, 2, 3):
        await choice.take(b"", clock.now)
        choice.lost(server, clock.now, DEAD, gone=False)
        assert server.dead == (n == 3)


async def test_one_burst_is_one_refusal() -> None:
    """Sixteen thrown back together halve the limit once; those asked later halve it again."""
    choice, clock = balancer(1)
    server = choice.servers[0]
    for _ in range(16):
        await choice.take(b"", clock.now)
    began, clock.now = clock.now, clock.now + 0.1
    for _ in range(16):
        choice.refused(server, began, DEAD, pause=True)
    assert server.limit.value == 8 and server.until == clock.now + 1
    clock.now += 1
    await choice.take(b"", clock.now)
    choice.refused(server, clock.now, DEAD, pause=True, retry_after=45)
    assert server.until == clock.now + 45


def serve_rounds(limit: Limit, clock: Clock, latency: Callable[[float], float], rounds: int) -> None:
    for _ in range(rounds):
        began = clock.now
        clock.now += latency(limit.value)
        for _ in range(max(8, round(limit.value))):
            limit.answered(began, clock.now, 10, full=True)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_limit_grows_while_latency_holds(noise: float) -> None:
    """To the top where latency is flat, or rises less than the load does; to about the width of a server that queues what it has no room for."""
    rng = random.Random(3)

    def noisy(latency: Callable[[float], float]) -> Callable[[float], float]:
        return lambda n: latency(n) * rng.uniform(1 - noise, 1 + noise)

    for latency in (lambda n: 1.0, lambda n: 1 + n / 100):
        limit = Limit(256)
        serve_rounds(limit, Clock(), noisy(latency), 12)
        assert limit.value == 256
    for width in (4, 24, 50):
        limit = Limit(1000)
        serve_rounds(limit, Clock(), noisy(lambda n, width=width: max(1.0, n / width)), 200)  # type: ignore[misc]
        assert limit.value <= max(START, 3 * width)


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit, clock = Limit(256), Clock()
    for _ in range(1000):
        limit.answered(clock.now, clock.now + 1, 10, full=False)
        clock.now += 1
    assert limit.value == START


def test_after_a_quota_window_the_limit_comes_back_fast() -> None:
    limit, clock = Limit(256), Clock()
    serve_rounds(limit, clock, lambda n: 1.0, 10)
    assert limit.value == 256
    for _ in range(10):
        limit.refused(clock.now, clock.now, 256)
        clock.now += 30
    assert limit.value == 1
    serve_rounds(limit, clock, lambda n: 1.0, 8)
    assert 128 <= limit.value <= 160


async def test_waiting_is_first_come_first_served_by_when_it_was_first_asked() -> None:
    choice, clock = balancer(1, most=1)
    server = await choice.take(b"", clock.now)
    order: list[str] = []

    async def wait(name: str, began: float) -> None:
        got = await choice.take(b"", began)
        order.append(name)
        choice.answered(got, clock.now, 1)

    tasks = [asyncio.create_task(wait(name, began)) for name, began in (("b", 1001.0), ("c", 1002.0), ("a", 1000.5))]
    await asyncio.sleep(0)
    choice.answered(server, clock.now, 1)
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


def test_what_is_sent_is_json() -> None:
    """A null in ``extra`` leaves; everything else goes as it is."""
    from sharpen.policies.endpoint_wire import request

    body = request("m", ask(), Sampling(), "max_tokens", {"seed": None, "chat_template_kwargs": {"enable_thinking": None}})
    assert "seed" not in body and json.loads(msgspec.json.encode(body))["chat_template_kwargs"] == {"enable_thinking": None}
    assert replace(settings("http://h/v1"), model="n").urls == ("http://h/v1",)
