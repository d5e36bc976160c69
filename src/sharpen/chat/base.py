"""What a chat template is to everything outside ``chat/``: messages to text to token ids, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sharpen.records import Message, TurnTokens


class Template(Protocol):
    """A model's way of writing conversations. Safe to call from many threads."""

    name: str

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an assistant turn."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, answered: bool = False) -> str:
        """The text the model reads; unless ``answered``, up to where an assistant turn begins. ModelError where it cannot be rendered.

        Names of control tokens in the messages are marked, so that ``encode`` leaves them text; ``names.unmarked`` gives the text bare.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; the names of control tokens in it become those tokens, unless they are marked."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text of ``ids``, special tokens included."""
        ...

    def answer(self, output: Sequence[int]) -> str:
        """The text of a sampled turn, without the token that ended it."""
        ...

    def message(self, output: Sequence[int], tools: Sequence[dict[str, Any]] = ()) -> Message:
        """A sampled turn as a message: where there are ``tools``, calls and reasoning are read out of its text."""
        ...

    def prompt(self, messages: Sequence[Message], turns: Sequence[TurnTokens] = (), tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids that ask for the next assistant turn, continuing the ids of the last one where the rendering extends it."""
        ...


def said(turn: str | Message) -> str:
    """An assistant turn in one line: its text and its calls."""
    if isinstance(turn, str):
        return turn
    return " ".join(filter(None, (turn.content, *(f"{call.name}({call.arguments})" for call in turn.tool_calls))))
