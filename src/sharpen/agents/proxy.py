"""An OpenAI-compatible server between an outside program and a policy, that records what passes. One server for one try.

Served: ``/chat/completions``, streamed or not, and ``/models``. Not served: ``/responses``, ``/completions``, images, ``n`` over 1, prefilled answers.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec.structs import replace

from sharpen.chat.tool_calls import told_apart
from sharpen.errors import ContextOverflow
from sharpen.policies.base import Conversation, Policy, Sampling, Turn, turn_seed
from sharpen.records import Message, ToolCall, TurnTokens

MAX_BODY = 64 << 20  # bytes of one request


class Refusal(Exception):
    """What the program gets instead of a turn: an HTTP status, OpenAI's word for it, and one line."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True, eq=False)
class Call:
    """One answered call. ``messages`` end with its answer; ``turns`` are the sampled ones among them; ``parent`` is the call it goes on from."""

    messages: tuple[Message, ...]
    turns: tuple[TurnTokens, ...]
    tools: tuple[dict[str, Any], ...]
    parent: Call | None


@dataclass
class Calls:
    """What one try asked of ``policy`` and was given, in order of arrival.

    ``sampling`` is used as it is, whatever the program asks for: what it asked for otherwise is in ``wished``. ``broken`` is set to the error
    where the engine broke. ``overflowed`` is true while the last thing that the engine said is that a conversation no longer fits.
    """

    policy: Policy
    sampling: Sampling
    max_calls: int
    answered: list[Call] = field(default_factory=list)
    wished: dict[str, list[Any]] = field(default_factory=dict)
    started: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    refused: bool = False
    overflowed: bool = False
    broken: asyncio.Future[Exception] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _asked: Counter[tuple[Message, ...]] = field(default_factory=Counter)

    async def ask(self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> Turn:
        """The policy's turn. Refusal where there is none to give.

        Messages that extend an earlier call's, answer included, continue its token ids. An answer that comes back without its reasoning or
        with the space at its ends cut goes to the engine as it was sampled. The same question asked again gets a seed of its own.
        """
        if self.started >= self.max_calls:
            self.refused = True
            raise Refusal(403, "max_calls", f"this try has used up its {self.max_calls} calls")
        self.started += 1
        parent = self._parent(messages, tools)
        new = messages
        before: tuple[TurnTokens, ...] = ()
        if parent is not None:
            new = messages[len(parent.messages) :]
            messages, before = (*parent.messages, *new), parent.turns
        # Ids belong to the last assistant message: after one that nobody sampled they would continue the wrong place.
        known = () if any(message.role == "assistant" for message in new) else before
        again = self._asked[messages]
        self._asked[messages] += 1
        sampling = replace(self.sampling, seed=turn_seed(self.sampling.seed, ("again", again))) if again else self.sampling
        self.in_flight += 1
        try:
            turn = await self.policy.complete(Conversation(messages=messages, turns=known, tools=tools), sampling)
        except ContextOverflow as error:
            self.overflowed = True
            raise Refusal(400, "context_length_exceeded", str(error)) from error
        except Exception as error:  # whatever it is, the try ends with it: Harness raises it again
            if not self.broken.done():
                self.broken.set_result(error)
            raise Refusal(502, "server_error", f"the engine broke: {error}") from error
        finally:
            self.in_flight -= 1
        turn = replace(turn, message=told_apart(turn.message, messages))
        self.overflowed = False
        self.prompt_tokens += turn.prompt_tokens
        self.sampled_tokens += turn.sampled_tokens
        self.answered.append(Call((*messages, turn.message), (*before, turn.tokens), tools, parent))
        return turn

    def wish(self, name: str, value: Any) -> None:
        """Note a setting that the program asked for and does not get: at most 8 different values of each."""
        values = self.wished.setdefault(name, [])
        if value not in values and len(values) < 8:
            values.append(value)

    def _parent(self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...]) -> Call | None:
        """The call with the longest conversation that ``messages`` go on from."""
        for call in sorted(self.answered, key=lambda call: len(call.messages), reverse=True):
            if len(call.messages) < len(messages) and call.tools == tools and all(map(_same, messages, call.messages)):
                return call
        return None


def conversations(answered: Sequence[Call]) -> tuple[list[tuple[Call, list[Call]]], list[Call]]:
    """The conversations that calls form, the longest first, each as its last call and its own; and the calls whose answers went unused.

    A call belongs to one conversation only: to the first that goes through it. An answer is unused where the very same question was asked
    again and only another answer was gone on from, or where, none being gone on from, it is not the last.
    """
    went_on = {id(call.parent) for call in answered}

    def question(call: Call) -> tuple[object, ...]:
        return call.messages[:-1], json.dumps(call.tools, sort_keys=True)

    chosen = {question(call): call for call in sorted(answered, key=lambda call: id(call) in went_on)}
    leaves = [call for call in answered if id(call) not in went_on]
    used = [call for call in leaves if chosen[question(call)] is call]
    unused = [call for call in leaves if chosen[question(call)] is not call]
    main = max(reversed(used), key=lambda call: len(call.messages))
    claimed: set[int] = set()
    found: list[tuple[Call, list[Call]]] = []
    for leaf in [main, *(call for call in used if call is not main)]:
        own: list[Call] = []
        at: Call | None = leaf
        while at is not None and id(at) not in claimed:
            claimed.add(id(at))
            own.append(at)
            at = at.parent
        found.append((leaf, own[::-1]))
    return found, unused


def _same(given: Message, known: Message) -> bool:
    """Whether ``given`` is the message ``known``. Programs send an answer back without its reasoning, stripped, its arguments spaced anew."""
    if given == known:
        return True
    return (
        given.role == known.role == "assistant"
        and given.content.strip() == known.content.strip()
        and given.reasoning in (None, known.reasoning)
        and [(c.id, c.name, _json(c.arguments)) for c in given.tool_calls] == [(c.id, c.name, _json(c.arguments)) for c in known.tool_calls]
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# ---------------------------------------------------------------- what goes over the wire


class _Function(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Said(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None


_ROLES: dict[str, Any] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_READ = ("messages", "tools", "stream", "stream_options", "user", "metadata", "store")  # all else is a wish
_DEFAULTS = {"n": 1, "tool_choice": "auto", "parallel_tool_calls": True, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False}


def _field(fields: dict[str, msgspec.Raw], name: str, kind: Any, default: Any) -> Any:
    """One field of the body, ``default`` where it is missing or null."""
    try:
        value = msgspec.json.decode(fields[name], type=kind | None) if name in fields else None
    except msgspec.ValidationError as error:
        raise Refusal(400, "invalid_request", f"{name}: {error}") from None
    return default if value is None else value


def _message(at: int, said: _Said) -> Message:
    if said.role not in _ROLES:
        raise Refusal(400, "invalid_request", f"messages[{at}]: no role {said.role!r} here; known: {', '.join(_ROLES)}")
    parts = [_Part(type="text", text=said.content)] if isinstance(said.content, str) else said.content or []
    for part in parts:
        if part.type != "text":
            raise Refusal(400, "invalid_request", f"messages[{at}]: only text is understood here, not {part.type!r}")
    return Message(
        role=_ROLES[said.role],
        content="\n".join(part.text for part in parts),
        reasoning=said.reasoning_content,
        tool_calls=tuple(ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments) for c in said.tool_calls or ()),
        tool_call_id=said.tool_call_id,
        name=said.name,
    )


def _completion(turn: Turn, model: str, stream: bool, usage_too: bool) -> web.Response:
    """OpenAI's JSON, or the same as three server-sent events at most."""
    plain: dict[str, Any] = {"role": "assistant", "content": turn.message.content}
    if turn.message.reasoning is not None:
        plain["reasoning_content"] = turn.message.reasoning
    if turn.message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            | ({"index": at} if stream else {})
            for at, call in enumerate(turn.message.tool_calls)
        ]
    reason = "length" if turn.tokens.stop == "length" else "tool_calls" if turn.message.tool_calls else "stop"
    usage = {
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.sampled_tokens,
        "total_tokens": turn.prompt_tokens + turn.sampled_tokens,
    }
    head = {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": f"chat.completion{'.chunk' if stream else ''}",
        "created": int(time.time()),
        "model": model,
    }
    if not stream:
        choice = {"index": 0, "message": plain, "finish_reason": reason, "logprobs": None}
        return _reply(200, {**head, "choices": [choice], "usage": usage})
    events: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": plain, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
    ]
    if usage_too:
        events.append({**head, "choices": [], "usage": usage})
    body = b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in events)
    return web.Response(body=body + b"data: [DONE]\n\n", content_type="text/event-stream")


def _reply(status: int, value: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return _reply(status, {"error": {"message": " ".join(message.split())[:500], "type": kind, "param": None, "code": code}})


@web.middleware
async def _in_openais_words(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return _error(refusal.status, refusal.code, str(refusal))
    except web.HTTPRequestEntityTooLarge:
        return _error(413, "request_too_large", f"a request is at most {MAX_BODY >> 20} MiB")
    except web.HTTPException as error:
        return _error(error.status, "not_served", f"{request.method} {request.path} is not served here, only /chat/completions and /models")


@asynccontextmanager
async def serve(calls: Calls) -> AsyncIterator[str]:
    """Serve ``calls`` on 127.0.0.1, on a port and under a path that no one can guess; gives the base URL, which ends in ``/v1``.

    Leaving cancels what is being sampled.
    """
    model = {"id": calls.policy.name, "object": "model", "created": 0, "owned_by": "sharpen"}

    async def chat(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            said = _field(fields, "messages", Annotated[list[_Said], msgspec.Meta(min_length=1)], [])
            tools = tuple(_field(fields, "tools", list[dict[str, Any]], []))
            stream, options = _field(fields, "stream", bool, False), _field(fields, "stream_options", dict[str, Any], {})
            wishes = {name: msgspec.json.decode(value) for name, value in fields.items() if name not in _READ}
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Refusal(400, "invalid_request", f"the body is no chat request: {error}") from None
        messages = tuple(_message(at, one) for at, one in enumerate(said))
        if not messages or messages[-1].role == "assistant":
            raise Refusal(400, "invalid_request", "messages must hold something to answer, and not end with an assistant's")
        if wishes.get("n") not in (None, 1) or wishes.get("functions"):
            raise Refusal(400, "invalid_request", "n over 1 and functions are not served here; ask again, and send tools")
        sampling = calls.sampling
        given = {
            **_DEFAULTS,
            "model": calls.policy.name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "max_completion_tokens": sampling.max_tokens,
        }
        for name, value in wishes.items():
            if value is not None and value != given.get(name):
                calls.wish(name, value)
        turn = await calls.ask(messages, tools)
        return _completion(turn, calls.policy.name, stream, bool(options.get("include_usage")))

    async def models(request: web.Request) -> web.Response:
        return _reply(200, {"object": "list", "data": [model]})

    path = f"/try/{secrets.token_urlsafe(16)}/v1"
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_in_openais_words])
    app.add_routes([web.post(f"{path}/chat/completions", chat), web.get(f"{path}/models", models)])
    # A program that hangs up, or is killed, no longer wants its answer: handler_cancellation frees the engine.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
    finally:
        await runner.cleanup()
