"""BabyAI in words: the real levels, the real bot, and a policy that types anything."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("minigrid")

from sharpen.agents.checks import gold_and_noop
from sharpen.agents.recorded import replay
from sharpen.errors import EnvironmentFault, SettingsError, TaskError
from sharpen.records import Message, Task
from sharpen.tasks import babyai
from sharpen.tasks.babyai import BabyAI
from sharpen.tasks.base import Splits, TaskSet
from sharpen.tasks.load import load_tasks

LEVELS = ("BabyAI-GoToObjS6-v1", "BabyAI-GoToLocalS6N2-v0", "BabyAI-GoToRedBallGrey-v0", "BabyAI-PickupDist-v0", "BabyAI-PutNextS5N1-v0")
FINGERPRINT = """
import msgspec
from sharpen.tasks.babyai import BabyAI
from sharpen.tasks.base import Splits
from sharpen.tasks.load import load_tasks
tasks = load_tasks(BabyAI(levels=("BabyAI-GoToObjS6-v1", "BabyAI-PickupDist-v0"), splits=Splits(train=6, dev=4), seed=5))
print(msgspec.json.encode([tasks.name, tasks.tasks]).decode())
"""


@pytest.fixture(scope="module")
def games() -> TaskSet:
    return load_tasks(BabyAI(levels=LEVELS, splits=Splits(demo=10, train=10, dev=10), longest=12))


async def test_the_expert_wins_every_level_and_doing_nothing_none(games: TaskSet) -> None:
    assert {task.params["level"] for task in games.tasks} == set(LEVELS)
    for task in games.tasks:
        expert = games.environment.expert(task) or ()
        played = await replay(task, games.environment, expert)
        assert (played.stop, played.outcome["won"], played.outcome["moves"], played.actions) == ("done", True, len(expert), expert)
        idle = await replay(task, games.environment, ["done"] * games.environment.max_turns)
        assert (idle.outcome["won"], idle.outcome["out_of_turns"], idle.cost.turns) == (False, True, 2 * len(expert) + 2)
    checks = await gold_and_noop(games)
    assert checks.gold_passes and checks.noop_fails, checks.example


def test_games_are_the_same_in_every_process() -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "77")
    ]
    assert told[0] == told[1]
    assert told[0].startswith(b'["babyai-') and told[0].count(b"\n") == 1  # and nothing else is printed


@pytest.mark.parametrize(
    "text", ["", " \n\n", "turn", "fly", "go forward twice", "x" * 10_000_000, "\x00\x1b[31m\udcff\u202e", "\n\n6\ndone", "2"]
)
async def test_nothing_typed_breaks_it(games: TaskSet, text: str) -> None:
    played = await replay(games.tasks[0], games.environment, [text] * games.environment.max_turns)
    assert (played.outcome["won"], played.outcome["moves"], played.outcome["out_of_turns"]) == (False, 0, True)
    assert max(map(len, played.actions)) <= 200


async def test_spellings_are_one_action(games: TaskSet) -> None:
    for task in games.tasks[:5]:
        expert = games.environment.expert(task) or ()
        short = {"turn left": "> Left.", "turn right": "RIGHT", "go forward": "forward\nbecause", "pick up": "pickup"}
        assert (await replay(task, games.environment, [short.get(word, word) for word in expert])).actions == expert


async def test_words_stay_few_and_start_from_the_mission(games: TaskSet) -> None:
    for task in games.tasks:
        played = await replay(task, games.environment, games.environment.expert(task) or ())
        assert played.messages[1].content.startswith("Mission: ")
        assert all(len(m.content.split()) < 70 for m in played.messages)


async def test_a_task_it_cannot_start_is_a_fault(games: TaskSet) -> None:
    for params in ({}, {**games.tasks[0].params, "level": "none"}, {**games.tasks[0].params, "seed": -1}):
        with pytest.raises(EnvironmentFault):
            await games.environment.start(replace(games.tasks[0], params=params))


def test_no_two_games_look_and_go_alike(games: TaskSet) -> None:
    assert len({task.family for task in games.tasks}) == len(games)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"levels": ("BabyAI-GoToObjj-v0",)}, "did you mean 'BabyAI-GoToObj"),
        ({"levels": ()}, "levels is empty"),
        ({"levels": LEVELS, "shortest": 9, "longest": 2}, "swap"),
        ({"levels": LEVELS, "seed": -1}, "seed is -1"),
        ({"levels": LEVELS, "longest": 0}, "between 1 and 200"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_tasks(BabyAI(splits=Splits(train=2), **settings))


def test_levels_that_run_dry_say_so() -> None:
    with pytest.raises(TaskError, match="different games of the 3"):
        load_tasks(BabyAI(levels=("BabyAI-KeyInBox-v0",), splits=Splits(train=3)))


def test_without_minigrid_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    babyai._levels.cache_clear()
    with pytest.raises(TaskError, match=r"pip install 'sharpen\[minigrid\]'"):
        load_tasks(BabyAI(levels=LEVELS, splits=Splits(train=1)))
    babyai._levels.cache_clear()


def test_a_task_without_an_expert_has_none(games: TaskSet) -> None:
    assert games.environment.expert(Task(key="x", family="x", prompt=(Message(role="user", content="x"),))) is None
