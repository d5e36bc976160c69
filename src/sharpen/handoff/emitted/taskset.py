"""This run's tasks for verifiers 0.4: installed editable (it reads ../.. , the hand-over), this package's name is the taskset's id.

The player's turns go through verifiers; the environment and the verifier are the run's own. A verdict that is an error fails the episode, not the try.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import verifiers.v1 as vf

from sharpen.handoff.folder import Given, given
from sharpen.handoff.taskset import play, rows

RL = Path(__file__).resolve().parents[2]


class RunData(vf.TaskData):
    """A task with its hidden reference, and how often the model passed it before RL."""

    family: str
    kind: str
    tries: int
    passes: int
    reference: Any = None


class RunTask(vf.Task[RunData]):
    @property
    def key(self) -> str:
        return self.data.id or self.hash


class RunConfig(vf.TasksetConfig):
    kinds: list[str] = ["mixed"]
    """mixed, never-solved, solved, unmeasured, all (of train); dev, which must not train."""


class RunTaskset(vf.Taskset[RunTask, RunConfig]):
    def load(self) -> Iterator[RunTask]:
        for row in rows(hand(), self.config.kinds):
            yield RunTask(RunData(**row), self.config.task)


class RunEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime={"type": "subprocess"})


class RunEnv(vf.Env[RunEnvConfig]):
    async def run(self, task: RunTask, agents: vf.Agents) -> None:
        async with agents.player.interaction(task) as interaction:
            verdict = await play(hand(), task.data.id, interaction)
        interaction.trace.record_reward("passed", float(verdict.outcome == "pass"), 1.0)
        if verdict.score is not None:
            interaction.trace.record_metric("score", verdict.score)


@cache
def hand() -> Given:
    return given(RL)


__all__ = ["RunEnv", "RunTaskset"]
