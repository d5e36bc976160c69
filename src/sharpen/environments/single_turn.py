"""One prompt, one answer."""

from __future__ import annotations

from sharpen.environments.base import Episode, Step
from sharpen.errors import EnvironmentFault
from sharpen.records import Message, Task


class SingleTurn:
    """Shows ``task.prompt``, takes one answer and ends. The gold answer, where there is one, is ``task.params["gold"]``, never shown."""

    name = "single_turn"
    max_turns = 1

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        """The prompt as it is. EnvironmentFault where the task has none."""
        if not task.prompt:
            raise EnvironmentFault(f"task {task.key!r} has no prompt; a single turn needs one")
        return _Answer(), task.prompt

    def expert(self, task: Task) -> tuple[str, ...] | None:
        gold = task.params.get("gold")
        return (gold,) if isinstance(gold, str) else None


class _Answer:
    async def step(self, message: Message) -> Step:
        return Step(action=message.content.strip(), done=True)

    async def close(self) -> None:
        """Nothing to give back."""
