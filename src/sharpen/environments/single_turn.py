"""One prompt, one answer."""

from __future__ import annotations

from sharpen.environments.base import Episode, Step, assistant_turns
from sharpen.errors import EnvironmentFault
from sharpen.records import Message, Record, Task


class SingleTurnSettings(Record, frozen=True, kw_only=True, tag_field="environment", tag="single_turn"):
    """One prompt, one answer: nothing to set."""


class SingleTurn:
    """Shows ``task.prompt``, takes one answer and ends. The gold answer, where there is one, is ``task.params["gold"]``, never shown."""

    name = "single_turn"
    max_turns = 1

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        """The prompt as it is. EnvironmentFault where the task has none."""
        if not task.prompt:
            raise EnvironmentFault(f"task {task.key!r} has no prompt; a single turn needs one")
        return _Answer(), task.prompt

    def expert(self, task: Task) -> tuple[str | Message, ...] | None:
        return gold_turns(task)


def gold_turns(task: Task) -> tuple[str | Message, ...] | None:
    """The solution that came with the task, in ``task.params["gold"]``: one text, or turns as ``assistant_turns`` takes them."""
    gold = task.params.get("gold")
    if gold is None or isinstance(gold, str):
        return None if gold is None else (gold,)
    return assistant_turns(gold, f"the gold solution of task {task.key!r}")


class _Answer:
    tools = ()

    async def step(self, message: Message) -> Step:
        return Step(action=message.content.strip(), done=True)

    async def close(self) -> None:
        """Nothing to give back."""
