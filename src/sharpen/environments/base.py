"""What an environment is: start a task, take a turn, give the next observation or the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from sharpen.errors import TaskError
from sharpen.records import Message, Record, Task, ToolCall


class Step(Record, frozen=True, kw_only=True):
    """What a turn led to.

    ``messages`` is what the policy sees next; ``action`` what the environment understood; ``done`` ends the episode;
    ``outcome`` is what the environment itself says of it so far (for example ``{"won": true, "moves": 3}``).
    """

    messages: tuple[Message, ...] = ()
    action: str = ""
    done: bool = False
    outcome: dict[str, Any] = {}


class Episode(Protocol):
    """One task being played by one agent. ``tools`` are the schemas of what may be called in it."""

    @property
    def tools(self) -> tuple[dict[str, Any], ...]: ...

    async def step(self, message: Message) -> Step:
        """Take an assistant turn. EnvironmentFault where the environment itself is broken."""
        ...

    async def close(self) -> None: ...


class Environment(Protocol):
    """Makes episodes. ``name`` identifies it and its settings in every sample key: change the one, change the other."""

    @property
    def name(self) -> str: ...

    @property
    def max_turns(self) -> int: ...

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        """A fresh episode and the messages that open it."""
        ...

    def expert(self, task: Task) -> tuple[str | Message, ...] | None:
        """Assistant turns that solve the task, where the environment knows them: the gold solution. None where it does not."""
        ...


def assistant_turns(given: Any, where: str) -> tuple[Message, ...]:
    """Assistant turns as people write them: one text, or a list of texts and of ``{"content": ..., "tool_calls": [{"name", "arguments"}]}``.

    ``arguments`` may be an object or a JSON string. TaskError, which begins with ``where``, for anything else.
    """
    if isinstance(given, str | Message) or not isinstance(given, Sequence):
        given = (given,)
    return tuple(_turn(item, f"{where}, turn {at}") for at, item in enumerate(given, 1))


def _turn(given: Any, where: str) -> Message:
    if isinstance(given, Message):
        return given
    if isinstance(given, str):
        return Message(role="assistant", content=given)
    try:
        calls = tuple(_call(call) for call in given.get("tool_calls") or ())
        return Message(role="assistant", content=given.get("content") or "", reasoning=given.get("reasoning"), tool_calls=calls)
    except (AttributeError, KeyError, TypeError):
        raise TaskError(f"{where} is {str(given)[:80]!r}; write a text, or content and tool_calls with name and arguments") from None


def _call(given: dict[str, Any]) -> ToolCall:
    given = given.get("function", given)  # as OpenAI nests it
    arguments = given["arguments"]
    return ToolCall(name=given["name"], arguments=arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode())
