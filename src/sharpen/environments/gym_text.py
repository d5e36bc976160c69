"""Gymnasium environments played in words: one line of text an action, one short text an observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sharpen.environments.base import Episode, Step
from sharpen.environments.text_game import NOT_UNDERSTOOD, GameSettings, first_line, plain, within
from sharpen.records import Message, Task
from sharpen.store.files import digest


@dataclass(frozen=True)
class Words:
    """An environment's wording. ``name`` stands for all of it in sample keys: other words, another name.

    ``system`` says how to play; ``actions`` maps what may be typed to the environment's action, ``aliases`` other spellings to
    those; ``opening`` and ``describe`` put the first and each later observation into words.
    """

    name: str
    system: str
    actions: Mapping[str, Any]
    opening: Callable[[Any], str]
    describe: Callable[[Any], str]
    aliases: Mapping[str, str] = field(default_factory=dict)


class GymText:
    """An environment of Gymnasium games.

    ``make`` gives the environment of a task and the seed to reset it with, the same for the same task. The expert's actions are the
    task's ``params["expert"]``; a game ends after twice as many turns plus two. It is won where the environment terminates it
    with a reward over 0, the nearest that Gymnasium has to success; ``score`` is the sum of rewards, ``moves`` counts understood actions.
    """

    def __init__(self, make: Callable[[Task], tuple[Any, int]], words: Words, settings: GameSettings | None = None) -> None:
        self._make, self._words = make, words
        self.settings = settings or GameSettings(max_turns=24)
        self.max_turns = self.settings.max_turns
        self.name = f"gym_text-{digest([words.name, self.max_turns])[:8]}"

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        """A fresh game, opened by its first observation. EnvironmentFault where it cannot be made."""

        def begin() -> tuple[_Play, str]:
            env, seed = self._make(task)
            observation, _ = env.reset(seed=seed)
            turns = min(self.max_turns, 2 * len(task.params["expert"]) + 2)
            return _Play(env, self._words, turns), self._words.opening(observation)

        play, opening = await within(self.settings.timeout_s, f"starting the game {task.key!r}", begin)
        return _Episode(play, task.key, self.settings.timeout_s), (
            Message(role="system", content=self._words.system),
            Message(role="user", content=opening),
        )

    def expert(self, task: Task) -> tuple[str, ...] | None:
        """The expert's actions, one a turn. None where the task names none."""
        return tuple(task.params["expert"]) if task.params.get("expert") else None


class _Episode:
    tools: tuple[dict[str, Any], ...] = ()

    def __init__(self, play: _Play, key: str, timeout_s: float) -> None:
        self._play, self._key, self._timeout_s = play, key, timeout_s

    async def step(self, message: Message) -> Step:
        return await within(self._timeout_s, f"a step of the game {self._key!r}", lambda: self._play.step(message.content))

    async def close(self) -> None:
        self._play.env.close()


class _Play:
    """One game in progress."""

    def __init__(self, env: Any, words: Words, turns: int) -> None:
        self.env, self._words, self._turns_left, self._moves, self._score = env, words, turns, 0, 0.0

    def step(self, text: str) -> Step:
        typed = first_line(text)
        said = plain(typed)
        action = self._words.aliases.get(said, said)
        self._turns_left -= 1
        ended = won = False
        if action in self._words.actions:
            observation, reward, terminated, truncated, _ = self.env.step(self._words.actions[action])
            self._moves += 1
            self._score += float(reward)
            ended, won = bool(terminated or truncated), bool(terminated and reward > 0)
            lost, feedback = bool(terminated and not won), self._words.describe(observation)
        else:
            action, lost, feedback = typed, False, NOT_UNDERSTOOD
        over = ended or self._turns_left < 1
        outcome = {"won": won, "lost": lost, "out_of_turns": over and not won and not lost, "score": self._score, "moves": self._moves}
        seen = () if over else (Message(role="user", content=feedback),)
        return Step(messages=seen, action=action, done=over, outcome=outcome)
