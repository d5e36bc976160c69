"""BabyAI's levels (Chevalier-Boisvert et al. 2019, in MiniGrid's version): missions on a grid, made from a seed, each with an expert's way."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import msgspec

from sharpen.environments.gym_text import GymText
from sharpen.environments.minigrid import ACTIONS, WORDS, opening
from sharpen.environments.text_game import GameSettings
from sharpen.errors import SettingsError, TaskError, nearest
from sharpen.records import Record, Task
from sharpen.store.files import digest
from sharpen.tasks.base import Splits, TaskSet, split_by_family
from sharpen.verifiers.outcome import EnvironmentOutcome

TRIES = 30  # seeds tried for each family wanted before giving up
SPOKEN = tuple(ACTIONS)  # by MiniGrid's number


class BabyAI(Record, frozen=True, kw_only=True, tag_field="source", tag="babyai"):
    """A set of missions.

    ``levels`` are Gymnasium ids (``BabyAI-GoToObj-v0``), taken in turn; ``splits`` counts families. The expert needs ``shortest`` to
    ``longest`` actions (1 to 200); seeds of other length, and those where the expert fails, are passed over. ``max_turns`` (None: twice
    ``longest`` plus two) and ``timeout_s`` are the environment's; ``seed`` 0 or more.
    """

    levels: tuple[str, ...]
    splits: Splits
    seed: int = 0
    shortest: int = 1
    longest: int = 8
    max_turns: int | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.levels:
            raise SettingsError("babyai levels is empty; name at least one, such as BabyAI-GoToObj-v0")
        for name in ("shortest", "longest"):
            if not 1 <= getattr(self, name) <= 200:
                raise SettingsError(f"babyai {name} is {getattr(self, name)}, but must be between 1 and 200")
        if self.shortest > self.longest:
            raise SettingsError(f"babyai shortest is {self.shortest} but longest is {self.longest}; swap them")
        if self.seed < 0:
            raise SettingsError(f"babyai seed is {self.seed}, but must be 0 or more")


def load(settings: BabyAI) -> TaskSet:
    """The missions of ``settings``, split.

    A family is what the player is told at the start, mission and view, and what the expert then does: two games alike in both
    are one to whoever plays them, wherever on the grid they take place, and only the first is taken. So the same mission from the same
    start is never there twice. TaskError where the levels run out of different missions.
    """
    wanted = sum(msgspec.structs.asdict(settings.splits).values())
    for level in settings.levels:
        if level not in _levels():
            raise SettingsError(f"babyai has no level {level!r}{nearest(level, _levels())}")
    tasks: dict[str, Task] = {}
    first = settings.seed * 1_000_003  # far apart: sets of neighbouring seeds share no game
    for seed in range(first, first + TRIES * wanted):
        if len(tasks) == wanted:
            break
        level = settings.levels[seed % len(settings.levels)]
        told, way = _expert(level, seed, settings.longest)
        if len(way) < settings.shortest:
            continue
        family = digest([told, way])[:12]
        key = f"{level.removeprefix('BabyAI-')}-{seed}-{digest(importlib.metadata.version('minigrid'))[:6]}"
        tasks.setdefault(family, Task(key=key, family=family, params={"level": level, "seed": seed, "expert": way}))
    if len(tasks) < wanted:
        raise TaskError(
            f"babyai made only {len(tasks)} different games of the {wanted} asked for; name more levels, or allow more actions with longest"
        )
    play = GameSettings(max_turns=settings.max_turns or 2 * settings.longest + 2, timeout_s=settings.timeout_s)
    chosen = split_by_family(list(tasks.values()), msgspec.structs.asdict(settings.splits), settings.seed)
    return TaskSet(f"babyai-{digest([settings, WORDS.name])[:8]}", chosen, GymText(make, WORDS, play), EnvironmentOutcome())


def make(task: Task) -> tuple[Any, int]:
    """The level of a task, always a fresh one, and its seed."""
    return _levels()[task.params["level"]](), task.params["seed"]


def _expert(level: str, seed: int, longest: int) -> tuple[str, list[str]]:
    """The opening of a game and the bot's way to win it: empty where it finds none in ``longest`` actions."""
    env = _levels()[level]()
    from minigrid.utils.baby_ai_bot import BabyAIBot

    observation, _ = env.reset(seed=seed)
    told = opening(observation)
    action: Any = None
    way: list[str] = []
    try:
        bot = BabyAIBot(env)
        while len(way) < longest:
            action = bot.replan(action)
            way.append(SPOKEN[int(action)])
            _, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return told, way if reward > 0 and way != ["done"] else []  # a game that is won at the start teaches nothing
    except Exception:
        return told, []  # the bot's own limits: it asserts, and raises of boxes that it opened
    return told, []


@functools.cache
def _levels() -> dict[str, Callable[[], Any]]:
    """A maker of each level, by id. TaskError where minigrid is not installed."""
    try:
        import gymnasium
        import minigrid  # noqa: F401 - registers its levels
        from minigrid.envs.babyai.core import roomgrid_level
    except ImportError as error:
        raise TaskError(f"BabyAI needs MiniGrid ({error}); pip install 'sharpen[minigrid]'") from None
    roomgrid_level.print = lambda *words: None  # it prints each draw that it rejects
    names = [name for name in gymnasium.registry if name.startswith("BabyAI-")]
    return {name: functools.partial(_fresh, name) for name in names}


def _fresh(level: str) -> Any:
    import gymnasium

    return gymnasium.make(level, disable_env_checker=True).unwrapped
