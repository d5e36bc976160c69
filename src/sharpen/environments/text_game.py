"""TextWorld games, many at once, in as few words as they can be played in.

The rules, the state and the quest are TextWorld's own, stepped in Python: nothing is compiled and no interpreter is
started, so a step takes about a millisecond. The words are ours: TextWorld's are written by its Inform 7 build (seconds
a game), and a small model on a slow machine pays for each of them at every turn.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from sharpen.environments.base import Episode, Step
from sharpen.errors import EnvironmentFault, SettingsError
from sharpen.records import Message, Record, Task
from sharpen.store.files import digest

T = TypeVar("T")

SYSTEM = "You play a text game. Answer with one command only."
WORDING = 1  # raise it when the observations change: samples of other words are other samples
CANNOT, NOT_UNDERSTOOD = "You can't do that now.", "I did not understand that."
LONGEST_ACTION = 200  # characters kept of what the policy typed; no command is near it
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class GameSettings(Record, frozen=True, kw_only=True):
    """What holds for games of every kind: never more than ``max_turns`` turns (1 or more), each step within ``timeout_s`` seconds (over 0)."""

    max_turns: int = 12
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise SettingsError(f"max_turns is {self.max_turns}, but must be at least 1")
        if self.timeout_s <= 0:
            raise SettingsError(f"timeout_s is {self.timeout_s}, but must be over 0")


class TextGameSettings(GameSettings, frozen=True, kw_only=True):
    """How TextWorld's games are played. A game also ends after twice the expert's turns plus two.

    ``show_commands`` lists the admissible commands at every turn (about 40 tokens each).
    """

    show_commands: bool = False


class TextGame:
    """An environment of TextWorld games. ``build`` gives the ``textworld.Game`` of a task, the same for the same task."""

    def __init__(self, build: Callable[[Task], Any], settings: TextGameSettings | None = None) -> None:
        self._build = build
        self.settings = settings or TextGameSettings()
        self.max_turns = self.settings.max_turns
        self.name = f"text_game-{digest([WORDING, self.settings.show_commands, self.max_turns])[:8]}"

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        """A fresh game, opened by the objective and the first room. EnvironmentFault where the game cannot be made."""

        def begin() -> tuple[_Play, str]:
            game = self._build(task)
            play = _Play(game, self.settings.show_commands, min(self.max_turns, 2 * len(game.walkthrough) + 2))
            return play, f"{game.objective}\n{play.look()}{play.hint()}"

        play, opening = await within(self.settings.timeout_s, f"starting the game {task.key!r}", begin)
        return _Episode(play, task.key, self.settings.timeout_s), (
            Message(role="system", content=SYSTEM),
            Message(role="user", content=opening),
        )

    def expert(self, task: Task) -> tuple[str, ...]:
        """The generator's own walkthrough, one command a turn."""
        return tuple(self._build(task).walkthrough)


class _Episode:
    tools = ()

    def __init__(self, play: _Play, key: str, timeout_s: float) -> None:
        self._play, self._key, self._timeout_s = play, key, timeout_s

    async def step(self, message: Message) -> Step:
        return await within(self._timeout_s, f"a step of the game {self._key!r}", lambda: self._play.step(message.content))

    async def close(self) -> None:
        """Nothing to give back: a game is a Python object."""


async def within(seconds: float, what: str, work: Callable[[], T]) -> T:
    """``work()`` in a thread; EnvironmentFault where it raises or takes longer."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(work), seconds)
    except TimeoutError:
        raise EnvironmentFault(f"{what} took over {seconds:g} s") from None
    except Exception as error:
        raise EnvironmentFault(f"{what} failed: {type(error).__name__}: {error}") from error


class _Play:
    """One game in progress: reads a line, moves TextWorld's state, answers in words."""

    def __init__(self, game: Any, show_commands: bool, turns: int) -> None:
        from textworld.generator.game import GameProgression

        self._progression = GameProgression(game)
        self._names: Mapping[str, str] = {key: info.name for key, info in game.infos.items()}
        self._things = {info.name: key for key, info in game.infos.items() if info.type != "r"}  # a room may share a thing's name
        self._verbs = {template.split()[0] for template in game.kb.inform7_commands.values()}
        self._show_commands, self._turns_left, self._moves = show_commands, turns, 0

    def step(self, text: str) -> Step:
        typed = first_line(text)
        self._turns_left -= 1
        action, feedback = self._do(typed)
        won, lost = bool(self._progression.completed), bool(self._progression.failed)
        over = won or lost or self._turns_left < 1
        outcome = {
            "won": won,
            "lost": lost,
            "out_of_turns": over and not won and not lost,
            "score": int(self._progression.score),
            "moves": self._moves,
        }
        seen = () if over else (Message(role="user", content=feedback + self.hint()),)
        return Step(messages=seen, action=action, done=over, outcome=outcome)

    def look(self) -> str:
        """The room, what stands in it and in reach, the ways out and what the player carries."""
        room = self._room()
        things = [self._thing(item) for item in self._sorted(fact.arguments[0] for fact in self._facts("at") if self._at(fact, room))]
        parts = [f"You are in the {self._names[room]}.", f"You see: {', '.join(things)}." if things else "You see nothing."]
        exits = sorted(self._exits(room))
        if exits:
            parts.append(f"Exits: {', '.join(exits)}.")
        if carried := self._held("I"):
            parts.append(f"You carry: {carried}.")
        return " ".join(parts)

    def hint(self) -> str:
        """The commands that would change something now, where the settings ask for them."""
        if not self._show_commands:
            return ""
        useful = (word for word in self._commands() if word.split()[0] not in ("examine", "look", "inventory"))
        return f"\nCommands: {'; '.join(sorted(useful))}."

    def _do(self, typed: str) -> tuple[str, str]:
        """The command understood, or what was typed where none was, and the answer to it."""
        said = plain(typed)
        commands = self._commands()
        command = next((known for known in commands if plain(known) == said), None)
        if command is None:
            return typed, CANNOT if said.split(" ")[0] in self._verbs else NOT_UNDERSTOOD
        self._progression.update(commands[command])
        self._moves += 1
        verb, _, rest = command.partition(" ")
        if verb in ("go", "look"):
            return command, self.look()
        if verb == "inventory":
            return command, f"You carry: {self._held('I') or 'nothing'}."
        if verb == "examine":
            return command, f"{self._thing(self._things[rest])}."
        inside = f" In it: {self._held(self._things[rest]) or 'nothing'}." if verb == "open" else ""
        return command, f"You {command}.{inside}"

    # ------------------------------------------------ reading TextWorld's facts

    def _commands(self) -> dict[str, Any]:
        """Admissible commands, in the order of their text: TextWorld's own order changes from process to process."""
        return dict(sorted(((a.format_command(self._names), a) for a in self._progression.valid_actions), key=lambda pair: pair[0]))

    def _facts(self, predicate: str) -> list[Any]:
        return [fact for fact in self._progression.state.facts if fact.name == predicate]

    @staticmethod
    def _at(fact: Any, room: str) -> bool:
        return bool(fact.arguments[1].name == room and fact.arguments[0].type != "P")

    def _room(self) -> str:
        return next(str(fact.arguments[1].name) for fact in self._facts("at") if fact.arguments[0].type == "P")

    def _sorted(self, items: Iterable[Any]) -> list[str]:
        # By name, never by TextWorld's id: the quest's own things have the lowest ids.
        return sorted((item.name for item in items), key=lambda key: self._names[key])

    def _held(self, holder: str, predicate: str = "in") -> str:
        """What is in ("in") or on ("on") something; the player's own things are in ``"I"``."""
        held = self._sorted(fact.arguments[0] for fact in self._facts(predicate) if fact.arguments[1].name == holder)
        return ", ".join(self._names[item] for item in held)

    def _thing(self, item: str) -> str:
        """A thing by name, with its state and what can be seen in or on it."""
        name = self._names[item]
        for state in ("closed", "locked"):
            if any(fact.arguments[0].name == item for fact in self._facts(state)):
                return f"{name} ({state})"
        if any(fact.arguments[0].name == item for fact in self._facts("open")):
            return f"{name} (open, {'in it: ' + held if (held := self._held(item)) else 'empty'})"
        return f"{name} (on it: {held})" if (held := self._held(item, "on")) else name

    def _exits(self, room: str) -> set[str]:
        ways = set()
        for direction, back in OPPOSITE.items():
            for fact in self._facts(f"{direction}_of"):  # north_of(a, b): a lies north of b
                there, here = (variable.name for variable in fact.arguments)
                if room == here:
                    ways.add(direction)
                elif room == there:
                    ways.add(back)
        return ways


def first_line(text: str) -> str:
    """The command in an assistant turn: its first line, cut to ``LONGEST_ACTION`` characters; "" where there is none."""
    lines = text.strip().splitlines()
    return lines[0].strip()[:LONGEST_ACTION] if lines else ""


def plain(command: str) -> str:
    """A command as the parser compares it: lower case, no articles, no quotes or full stop around it, single spaces."""
    words = re.sub(r"\s+", " ", command.lower()).strip(" .!>\"'`*")
    return re.sub(r"\b(?:the|a|an) ", "", words)
