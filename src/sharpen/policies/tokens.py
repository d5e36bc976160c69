"""What engines that take and give token ids have in common: a conversation to a prompt, an output to a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sharpen.chat.base import Template
from sharpen.errors import ContextOverflow
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.records import TurnTokens


def prompt_of(template: Template, conversation: Conversation, sampling: Sampling, context: int) -> list[int]:
    """The ids that ask for the next turn. ContextOverflow where they and ``max_tokens`` exceed ``context`` tokens."""
    prompt = template.prompt(conversation.messages, conversation.turns, conversation.tools)
    if len(prompt) + sampling.max_tokens > context:
        raise ContextOverflow(f"{len(prompt)} prompt tokens and {sampling.max_tokens} to sample exceed the context of {context}")
    return prompt


def turn_of(
    template: Template, conversation: Conversation, prompt: Sequence[int], output: Sequence[int], logprob: float | None = None
) -> Turn:
    """The turn that ``output`` is: every sampled id, the end-of-turn token included; without one it was cut. ``logprob`` as in TurnTokens."""
    stop: Literal["stop", "length"] = "stop" if output[-1] in template.end_ids else "length"
    return Turn(
        message=template.message(output, conversation.tools),
        tokens=TurnTokens(prompt=tuple(prompt), output=tuple(output), stop=stop, logprob=None if logprob is None else round(logprob, 4)),
        prompt_tokens=len(prompt),
        sampled_tokens=len(output),
    )
