"""What policies are held to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st

from sharpen import plugins
from sharpen.chat.base import Template
from sharpen.errors import ContextOverflow
from sharpen.policies.base import Conversation, Policy, Sampling, Turn
from sharpen.records import Message
from sharpen.testing.base import broken, run, short, survives
from sharpen.testing.generate import HOSTILE, for_all, texts

T = TypeVar("T")

QUESTION = "What is the capital of France? Answer in one sentence."


def check_policy(
    policy: Policy | Callable[[], Policy],
    *,
    deterministic: bool = True,
    template: Template | None = None,
    examples: int = 20,
    at_once: int = 16,
    timeout_s: float = 60.0,
) -> None:
    """Hold a policy, or what a callable opens, to this. It is closed at the end.

    - it has a ``name``, and says by a bool whether it gives token ids
    - a short question is answered; every call gives a Turn with an assistant's message, which survives a JSON round trip
    - token ids are there where it gives them, as many as ``prompt_tokens`` and ``sampled_tokens`` say, and not there where it does not; with ``template``,
      the message is what the template reads in them
    - ``max_tokens`` is held (as far as ``sampled_tokens`` tells)
    - no conversation, in any script, raises anything but ContextOverflow or takes over ``timeout_s`` seconds
    - the same seed gives the same turn twice, also among ``at_once`` calls at the same time; not asked with ``deterministic=False``
    - a cancelled call does not break the next one
    - it can go on from its own turn
    - closing twice is harmless
    """
    opened: Any = policy if hasattr(policy, "complete") or not callable(policy) else policy()
    if missing := plugins.missing(opened, Policy):
        raise broken(f"policy {type(opened).__name__}", "it is a Policy", f"it has no {missing}")
    where = f"policy {opened.name!r}"
    if not isinstance(opened.name, str) or not opened.name or not isinstance(opened.gives_token_ids, bool):
        raise broken(
            where, "it has a name, and gives_token_ids is a bool", f"name {opened.name!r}, gives_token_ids {opened.gives_token_ids!r}"
        )
    held = _Policy(opened, where, template)

    def wait(work: Coroutine[Any, Any, T], what: str) -> T:
        return run(work, timeout_s, f"{where}: {what}")

    def check(pair: tuple[Conversation, int]) -> Turn | None:
        conversation, max_tokens = pair
        sampling = Sampling(max_tokens=max_tokens, seed=1)
        first = wait(held.turn(conversation, sampling), _asked(conversation))
        if deterministic and (again := wait(held.turn(conversation, sampling), _asked(conversation))) != first:
            raise broken(where, "the same seed gives the same turn twice", f"{_asked(conversation)}: {short(first)}, then {short(again)}")
        return first

    for max_tokens in (1, 3, 32):
        if check((_conversation(QUESTION), max_tokens)) is None:
            raise broken(where, "a short question is answered", f"asked {QUESTION!r}: ContextOverflow")
    for text in HOSTILE:
        check((_conversation(text), 8))
    roles = st.lists(texts, min_size=1, max_size=5).map(lambda said: _conversation(*said))
    for_all(st.tuples(roles, st.sampled_from([1, 4, 16])), check, examples)

    sampling = Sampling(max_tokens=16, seed=1)
    questions = [_conversation(f"What is {n} plus 1?") for n in range(at_once)]
    alone = [wait(held.turn(question, sampling), _asked(question)) for question in questions]

    async def together() -> list[Turn | None]:
        return await asyncio.gather(*(held.turn(question, sampling) for question in questions))

    for question, one, other in zip(questions, alone, wait(together(), f"{at_once} calls at once"), strict=True):
        if deterministic and one != other:
            what = "the same seed gives the same turn, also among other calls"
            raise broken(where, what, f"{_asked(question)}: {short(one)} alone, {short(other)} beside {at_once - 1} others")

    async def cancelled(seconds: float) -> None:
        call = asyncio.create_task(opened.complete(questions[0], Sampling(max_tokens=256)))
        await asyncio.sleep(seconds)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    for seconds in (0.0, 0.001, 0.05):
        wait(cancelled(seconds), "cancelling a call")
        try:
            after = wait(held.turn(questions[0], sampling), "the call after a cancelled one")
        except AssertionError as error:
            raise broken(where, "a cancelled call does not break the next one", str(error).removeprefix(f"{where}: ")) from None
        if deterministic and after != alone[0]:
            raise broken(where, "a cancelled call does not break the next one", f"{short(alone[0])} before, {short(after)} after")
    if alone[0] is not None:
        messages = (*questions[0].messages, alone[0].message, *questions[1 % at_once].messages)
        wait(held.turn(Conversation(messages=messages, turns=(alone[0].tokens,)), sampling), "going on from its own turn")
    for _ in range(2):
        try:
            wait(opened.close(), "closing")
        except Exception as error:
            raise broken(where, "closing twice is harmless", f"{type(error).__name__}: {error}") from None


class _Policy:
    """A policy under test."""

    def __init__(self, policy: Policy, where: str, template: Template | None) -> None:
        self._policy, self._where, self._template = policy, where, template

    async def turn(self, conversation: Conversation, sampling: Sampling) -> Turn | None:
        """The next turn, after the properties that hold for every one; None where the conversation is too long."""
        shown = f"{_asked(conversation)}, max_tokens {sampling.max_tokens}"
        try:
            turn = await self._policy.complete(conversation, sampling)
        except ContextOverflow:
            return None
        except Exception as error:
            raise broken(
                self._where, "no conversation raises anything but ContextOverflow", f"{shown}: {type(error).__name__}: {error}"
            ) from None
        if not isinstance(turn, Turn) or turn.message.role != "assistant" or not survives(turn):
            raise broken(
                self._where, "a call gives a Turn with an assistant's message that survives a JSON round trip", f"{shown}: {turn!r}"
            )
        if turn.sampled_tokens > sampling.max_tokens or len(turn.tokens.output or ()) > sampling.max_tokens:
            raise broken(
                self._where, "max_tokens is held", f"{shown}: {max(turn.sampled_tokens, len(turn.tokens.output or ()))} were sampled"
            )
        ids = (turn.tokens.prompt, turn.tokens.output)
        if any((one is not None) != self._policy.gives_token_ids for one in ids):
            raise broken(self._where, "token ids are there where it says that it gives them", f"{shown}: {short(turn.tokens)}")
        if ids[0] is None or ids[1] is None:
            return turn
        if (len(ids[0]), len(ids[1])) != (turn.prompt_tokens, turn.sampled_tokens) or min(ids[0] + ids[1], default=0) < 0:
            counts = f"{len(ids[0])} and {len(ids[1])} ids, but prompt_tokens {turn.prompt_tokens} and sampled_tokens {turn.sampled_tokens}"
            raise broken(self._where, "there are as many token ids as it counts", f"{shown}: {counts}")
        if self._template is not None and (read := self._template.message(ids[1], conversation.tools)) != turn.message:
            raise broken(self._where, "the message is what the template reads in the token ids", f"{shown}: {turn.message}, but {read}")
        return turn


def _conversation(*texts: str) -> Conversation:
    """User and assistant in turns, the last one the user."""
    roles = ("user", "assistant") if len(texts) % 2 else ("system", "user", "assistant")
    order = itertools.chain(roles[:-2], itertools.cycle(roles[-2:]))
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in zip(order, texts, strict=False)))  # type: ignore[arg-type]


def _asked(conversation: Conversation) -> str:
    return f"asked {short(' | '.join(message.content for message in conversation.messages))}"
