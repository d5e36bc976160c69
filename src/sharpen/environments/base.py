"""What an environment is: start a task, take a turn, give the next observation or the end."""

from __future__ import annotations

from typing import Any, Protocol

from sharpen.records import Message, Record, Task


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
    """One task being played by one agent."""

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

    def expert(self, task: Task) -> tuple[str, ...] | None:
        """Assistant turns that solve the task, where the environment knows them: the gold solution. None where it does not."""
        ...
