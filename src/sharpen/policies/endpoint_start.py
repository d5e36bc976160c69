"""What every server is asked before its first request: whether it serves the model, lets us in, and reads every setting it is sent.

A server that knows a field and ignores its value cannot be found out from here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sharpen.errors import SettingsError, nearest
from sharpen.policies.endpoint_wire import PATH, Completion, Trouble

Get = Callable[[str], Awaitable[tuple[int, bytes] | Trouble]]
Post = Callable[[Mapping[str, Any]], Awaitable[Completion | Trouble]]
_DATED = re.compile(r"-(\d{4}|\d{6}|\d{8}|\d{4}-\d{2}(-\d{2})?)")


class _Listed(msgspec.Struct):
    id: str
    root: str | None = None
    aliases: list[str] = []


class _Models(msgspec.Struct):
    data: list[_Listed] = []
    id: str = ""  # of the one that was asked for, where a server is asked for one


async def names(url: str, path: str, model: str, key_from: str, get: Get) -> frozenset[str] | Trouble:
    """The names that ``model`` goes by at the server: its own, and those that ``path`` says are the same. SettingsError where it is not served there.

    Servers that list no models are taken at their word. ``key_from`` is the environment variable that holds the key.
    """
    found = await get(url + path)
    if isinstance(found, Trouble):
        return found
    status, content = found
    if status in (401, 403):
        raise SettingsError(locked_out(url, status, key_from))
    listed: list[_Listed] = []
    if status == 200:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            said = msgspec.json.decode(content, type=_Models)
            if said.id:
                return frozenset({model, said.id})
            listed = said.data
    if not listed:
        return frozenset({model})
    ours = [one for one in listed if model in (one.id, one.id.removesuffix(":latest"), *one.aliases)]
    if not ours:
        known = [one.id for one in listed]
        hint = (
            nearest(model, known)
            if len(known) <= 20
            else nearest(model, known).partition("; known")[0] or f"; it lists {len(known)} models"
        )
        raise SettingsError(f"{url} does not serve {model!r}{hint}")
    roots = {one.root for one in ours} - {None}
    same = [one for one in listed if one in ours or one.root in roots]
    return frozenset({model, *(name for one in same for name in (one.id, *one.aliases))})


def same_model(asked: str, answered: str) -> bool:
    """Whether ``answered`` is what ``asked`` stands for: itself, or a dated version of it (``gpt-4o``, ``gpt-4o-2024-08-06``)."""
    return answered == asked or (answered.startswith(f"{asked}-") and _DATED.fullmatch(answered[len(asked) :]) is not None)


async def takes(url: str, path: str, body: Mapping[str, Any], key_from: str, post: Post) -> Completion | Trouble:
    """The answer to ``body``, a request for one token. SettingsError, one line, where the server will not take it."""
    answer = await post(body)
    if isinstance(answer, Trouble) and answer.then == "give up":
        line = str(answer.error)
        if answer.locked_out:
            raise SettingsError(locked_out(url, answer.status, key_from, answer.said))
        named = [name for name in body if name not in ("model", "messages") and re.search(rf"\b{re.escape(name)}\b", line)]
        if "max_completion_tokens" in line and "max_tokens" in body:
            line = f"{line}; set engine.max_tokens_field: max_completion_tokens"
        elif named == ["seed"]:
            line = f"{line}; leave it out with engine.extra: {{seed: null}}"
        elif named:
            line = f"{line}; it does not take {named[0]} as it is set"
        elif " 404: " in line:
            line = f"{line}; base_urls end where {path} begins, often in /v1"
        raise SettingsError(line)
    return answer


async def reads(url: str, at: str, body: Mapping[str, Any], extra: Mapping[str, Any], get: Get, post: Post) -> Trouble | None:
    """SettingsError where the server would ignore a field: of the ``body`` by its own list of fields, or of ``extra`` by a question.

    The list is /openapi.json (vLLM, SGLang, llama-cpp-python) or, for what is surely known, /props (llama.cpp). Without one the server is sent
    each extra field with a value of a wrong type: whoever reads it complains, whoever answers does not read it.
    """
    root = url.removesuffix("/v1")
    fields: set[str] = set()
    for path, names_in in (("/openapi.json", _in_schema), ("/props", _in_props)):
        found = await get(root + path)
        if isinstance(found, Trouble):
            return found
        if found[0] == 200:
            try:
                fields = names_in(msgspec.json.decode(found[1]), urlsplit(url).path, at)
            except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, AttributeError, RecursionError):
                fields = set()
        if fields and path == "/openapi.json":
            for name in body:
                if name not in fields:
                    raise SettingsError(f"{url} has no field {name!r}{_near(name, fields)}; remove it from engine.extra")
            return None
        if fields:
            break
    for name, value in extra.items():
        if value is None or name in fields:
            continue
        wrong = "wrong" if isinstance(value, dict | list) else {"wrong": "type"}
        answer = await post({**body, name: wrong})
        if isinstance(answer, Completion):
            raise SettingsError(
                f"{url} does not read {name!r}: it answered although the value was of a wrong type; remove it from engine.extra, "
                "or set engine.check: false if you know better"
            )
        if answer.then == "wait" or answer.lost:
            return answer
    return None


async def shows_tools(
    url: str, body: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], without: Completion, key_from: str, post: Post
) -> Trouble | None:
    """SettingsError where ``tools`` are refused, or leave the prompt as long as it was ``without``: then no model ever sees them."""
    answer = await takes(url, PATH, {**body, "tools": tools}, key_from, post)
    if isinstance(answer, Trouble):
        return answer
    if answer.prompted and answer.prompted == without.prompted:
        raise SettingsError(
            f"{url} does not show tools to the model: the prompt is {answer.prompted} tokens with and without them; "
            "serve the model with a chat template that renders tools"
        )
    return None


def _near(name: str, fields: set[str]) -> str:
    return nearest(name, fields).partition("; known")[0]


def _in_schema(api: Any, path: str, at: str) -> set[str]:
    """The fields of a request by an OpenAPI document, empty where it does not say."""
    paths = sorted((p for p in api["paths"] if p.endswith(at)), key=lambda p: p != path + at)
    return _fields(api, api["paths"][paths[0]]["post"]["requestBody"]["content"]["application/json"]["schema"])


def _fields(api: Any, schema: Any) -> set[str]:
    if reference := schema.get("$ref"):
        at = api
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]
        return _fields(api, at)
    found = set(schema.get("properties", ()))
    for way in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(way, ()):
            found |= _fields(api, part)
    return found


def _in_props(props: Any, path: str, at: str) -> set[str]:
    # chat_template_kwargs is no sampling parameter and so not listed, and llama.cpp takes any type for it without a word.
    return {*props["default_generation_settings"]["params"], "chat_template_kwargs"}


def locked_out(url: str, status: int, key_from: str, said: str = "") -> str:
    """That the server does not let us in, whose key that is, and what it ``said``. ``key_from`` is the environment variable that holds the key."""
    what = (
        f"refuses the key in {key_from}" if key_from else "wants a key; name the environment variable that holds it in engine.api_key_env"
    )
    return f"{url} {what} (it answered {status}{f': {said}' if said else ''})"
