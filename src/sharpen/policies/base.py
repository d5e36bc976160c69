"""What a policy is: a model on an engine, or an endpoint. One method, so that a test's fake is ten lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Message, Model, Record, TurnTokens


class Sampling(Record, frozen=True, kw_only=True):
    """How a turn is sampled. The same settings and seed on the same engine give the same tokens where the engine allows it.

    ``temperature`` >= 0 (0 is greedy), ``top_p`` in (0, 1], ``max_tokens`` > 0 per turn, ``seed`` the run's;
    the seed of one turn is derived from it and the sample index.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise SettingsError(f"temperature is {self.temperature}, but must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p is {self.top_p}, but must be over 0 and at most 1")
        if self.max_tokens < 1:
            raise SettingsError(f"max_tokens is {self.max_tokens}, but must be at least 1")


class Conversation(Record, frozen=True, kw_only=True):
    """What a policy is asked to continue.

    ``messages`` end with anything but an assistant turn. ``turns`` are the token ids of the assistant turns already in ``messages``,
    in order, so that an engine can continue from the very ids it sampled instead of re-tokenising their text.
    """

    messages: tuple[Message, ...]
    turns: tuple[TurnTokens, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()


class Turn(Record, frozen=True, kw_only=True):
    """One assistant turn: the message, and the ids behind it where the engine gives them. ``unsized`` where nobody says how many tokens it took."""

    message: Message
    tokens: TurnTokens
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    unsized: bool = False


class Policy(Protocol):
    """Continues conversations. Safe to call many times at once; cancelling the call cancels the work."""

    @property
    def name(self) -> str: ...

    @property
    def gives_token_ids(self) -> bool: ...

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The next assistant turn. ContextOverflow where it cannot fit, PolicyError where the engine is broken."""
        ...

    async def close(self) -> None:
        """Give back threads, memory and processes. Calling it twice is harmless."""
        ...


@runtime_checkable
class Served(Policy, Protocol):
    """A policy behind servers, which may not say how many tokens a call took. Where ``must_count`` names a setting, they must: CapError at the start."""

    must_count: str


@runtime_checkable
class Lasting(Policy, Protocol):
    """A policy whose engine outlives its weights, because starting it is slow."""

    def take_up(self, model: Model) -> None:
        """From the next turn on, continue as ``model``. Called with no turn under way."""
        ...

    async def rest(self) -> None:
        """Give the memory back, for training; the next turn takes it again."""
        ...


def uncounted(who: str, setting: str) -> str:
    """Why ``setting`` cannot be kept to, and what to do."""
    return (
        f"{who} does not say how many tokens a call took (its answers have no usage), so {setting} cannot be kept to; make the server send usage, set "
        "engine.token_ids: true where it can (vLLM), or cap spending.max_calls instead"
    )


def turn_seed(seed: int, parts: Sequence[object]) -> int:
    """A 63-bit seed for one turn, stable across processes, from the run's seed and whatever identifies the turn."""
    import hashlib

    digest = hashlib.sha256(msgspec.json.encode([seed, *map(str, parts)])).digest()
    return int.from_bytes(digest[:8], "big") >> 1
