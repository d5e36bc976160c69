"""Text games by TextWorld's own generator: one game a family, made from its seed alone, the same on every machine.

What is asked is told step by step in free wording (``objective="steps"``: "Recover the keycard from the shelf. Venture
south." for ``take keycard from shelf``, ``go south``), or by its last step alone (``"goal"``), and then the way there must be found.
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from sharpen.environments.text_game import TextGame, TextGameSettings
from sharpen.errors import SettingsError, TaskError
from sharpen.models import cache_folder
from sharpen.records import Record, Task
from sharpen.store.files import digest
from sharpen.tasks.base import Splits, TaskSet, split_by_family
from sharpen.verifiers.outcome import EnvironmentOutcome

RECIPE = 1  # raise it when the same seed gives another game
TRIES = 30  # seeds tried for each family wanted before giving up

# Mean tokens over 100 games, SmolLM2's tokenizer and template.
PRESETS: Mapping[str, dict[str, Any]] = {
    # opening 70, later turns 13, a whole expert game 89: one room, one or two told steps
    "easy": {"rooms": 1, "objects": 4, "shortest": 1, "longest": 2},
    # opening 86, later turns 21, a whole expert game 154: two rooms, two to four told steps
    "default": {},
    # opening 67, later turns 26, a whole expert game 180: three rooms, three to five steps of which the last is told
    "hard": {"rooms": 3, "objects": 8, "shortest": 3, "longest": 5, "objective": "goal"},
}

_generator = threading.Lock()  # TextWorld's grammar cache is shared and fills while games are made


class GameOptions(Record, frozen=True, kw_only=True):
    """What one game is made from, with its seed. ``steps`` is the length of the quest."""

    rooms: int
    objects: int
    steps: int
    objective: Literal["steps", "goal"]
    theme: Literal["house", "basic"]
    adjectives: bool
    seed: int


class TextWorld(Record, frozen=True, kw_only=True, tag_field="source", tag="textworld"):
    """A set of generated games.

    ``splits`` counts games, each a family of its own. ``rooms`` 1 to 20, ``objects`` 1 to 40 (the quest may need more and
    then gets them), quests of ``shortest`` to ``longest`` steps (1 to 10). ``objective``: every step is told, or the last
    only. ``adjectives`` makes longer names. ``show_commands``, ``max_turns`` (None: twice the longest quest plus two) and ``timeout_s``
    are the environment's.
    """

    splits: Splits
    seed: int = 0
    rooms: int = 2
    objects: int = 6
    shortest: int = 2
    longest: int = 4
    objective: Literal["steps", "goal"] = "steps"
    theme: Literal["house", "basic"] = "house"
    adjectives: bool = False
    show_commands: bool = False
    max_turns: int | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name, most in (("rooms", 20), ("objects", 40), ("shortest", 10), ("longest", 10)):
            if not 1 <= getattr(self, name) <= most:
                raise SettingsError(f"textworld {name} is {getattr(self, name)}, but must be between 1 and {most}")
        if self.shortest > self.longest:
            raise SettingsError(f"textworld shortest is {self.shortest} but longest is {self.longest}; swap them")
        if self.seed < 0:
            raise SettingsError(f"textworld seed is {self.seed}, but must be 0 or more")


def load(settings: TextWorld) -> TaskSet:
    """The games of ``settings``, split.

    A family is the game's walkthrough, word for word ("open chest; take key from chest"): two games with the same quest on the
    same things are one family, whatever else lies about, and only the first is taken. So every game of the set asks for
    something that no other asks for, in any split. TaskError where the generator runs out of different quests.
    """
    wanted = sum(msgspec.structs.asdict(settings.splits).values())
    tasks: dict[str, Task] = {}
    first = settings.seed * 1_000_003  # far apart: sets of neighbouring seeds share no game
    for seed in range(first, first + TRIES * wanted):
        if len(tasks) == wanted:
            break
        options = GameOptions(
            rooms=settings.rooms,
            objects=settings.objects,
            steps=settings.shortest + seed % (settings.longest - settings.shortest + 1),
            objective=settings.objective,
            theme=settings.theme,
            adjectives=settings.adjectives,
            seed=seed,
        )
        recipe = _recipe(options)
        if recipe is None or len(recipe["walkthrough"]) != options.steps:
            continue  # now and then the generator's quest has a shortcut
        family = digest(recipe["walkthrough"])[:12]
        key = f"tw-l{options.steps}-{seed}-{_digest(options)[:6]}"
        tasks.setdefault(family, Task(key=key, family=family, params=msgspec.to_builtins(options)))
    if len(tasks) < wanted:
        raise TaskError(f"textworld made only {len(tasks)} different games of the {wanted} asked for; allow more rooms, objects or steps")
    limit = settings.max_turns or 2 * settings.longest + 2
    play = TextGameSettings(show_commands=settings.show_commands, max_turns=limit, timeout_s=settings.timeout_s)
    chosen = split_by_family(list(tasks.values()), msgspec.structs.asdict(settings.splits), settings.seed)
    return TaskSet(f"textworld-{_digest(settings)[:8]}", chosen, TextGame(build, play), EnvironmentOutcome())


def build(task: Task) -> Any:
    """The ``textworld.Game`` of a task: read back from the cache, or made again from the seed. Games are not to be changed."""
    return _game(msgspec.json.encode(msgspec.convert(task.params, GameOptions)))


@functools.lru_cache(maxsize=1024)
def _game(options: bytes) -> Any:
    recipe = _recipe(msgspec.json.decode(options, type=GameOptions))
    if recipe is None:
        raise TaskError(f"textworld finds no game for {options.decode()}")
    tw = _textworld()
    from textworld.generator.data import KnowledgeBase
    from textworld.generator.game import Quest
    from textworld.generator.world import World

    game = tw.Game(World.deserialize(recipe["world"], kb=KnowledgeBase.default()))
    game.quests = tuple(Quest.deserialize(quest) for quest in recipe["quests"])
    for key, name in recipe["names"].items():
        game.infos[key].name = name
    game.objective = recipe["objective"]
    game.metadata["walkthrough"] = recipe["walkthrough"]
    return game


def _recipe(options: GameOptions) -> dict[str, Any] | None:
    """What a game needs to be put together again, from the cache or from the generator. None where the seed gives no game."""
    path = cache_folder() / "textworld" / f"{_digest(options)}.json"
    try:
        known: dict[str, Any] | None = msgspec.json.decode(path.read_bytes())
        return known
    except (OSError, msgspec.DecodeError):
        pass  # not there, or half written by a process that was killed
    with _generator:
        made = _generate(options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(made)
        Path(file.name).replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    fresh: dict[str, Any] | None = msgspec.json.decode(made)
    return fresh


def _generate(options: GameOptions) -> bytes:
    """The recipe as JSON, ``null`` where the seed gives no game."""
    tw = _textworld()
    from numpy.random import RandomState
    from textworld.generator import make_game
    from textworld.generator.chaining import QuestGenerationError
    from textworld.generator.data import KnowledgeBase
    from textworld.generator.game import Event, GameProgression
    from textworld.generator.text_generation import describe_event
    from textworld.generator.text_grammar import Grammar
    from textworld.textgen import TextGrammar

    wish = tw.GameOptions()
    wish.kb = KnowledgeBase.default()  # parsing it anew takes longer than making the game
    wish.seeds = int(RandomState(options.seed % 2**32).randint(2**31 - 1))
    wish.nb_rooms, wish.nb_objects, wish.quest_length = options.rooms, options.objects, options.steps
    wish.grammar.theme, wish.grammar.include_adj = options.theme, options.adjectives
    wish.grammar.only_last_action = options.objective == "goal"
    try:
        game = make_game(wish)
    except QuestGenerationError:
        return b"null"
    if not game.walkthrough:
        return b"null"
    # The objective again, without its welcome, its farewell and the "after that"s, which say nothing and double its length.
    grammar = Grammar(wish.grammar, RandomState(wish.seeds["grammar"]))
    bare = TextGrammar.parse("quest:(list_of_actions)\nquest_one_action:(action)\n").rules
    grammar.grammar = {tag: rule for tag, rule in grammar.grammar.items() if not tag.startswith("#action_separator")}
    grammar.grammar.update({f"#{name}#": rule for name, rule in bare.items()})
    objective = describe_event(Event(GameProgression(game).winning_policy), game, grammar)
    recipe = {
        "world": game.world.serialize(),
        "quests": [quest.serialize() for quest in game.quests],
        "names": {key: info.name for key, info in game.infos.items()},
        "objective": " ".join(objective.split()),
        "walkthrough": list(game.walkthrough),
    }
    return json.dumps(recipe).encode()  # the standard library's: TextWorld's strings are numpy's


def _digest(settings: Record) -> str:
    return digest([RECIPE, _textworld().__version__, settings])


@functools.cache
def _textworld() -> Any:
    try:
        import textworld
    except ImportError as error:
        raise TaskError(f"text games need TextWorld ({error}); pip install 'sharpen[textworld]'") from None
    return textworld
