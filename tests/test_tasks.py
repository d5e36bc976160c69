"""Where tasks come from: same settings, same tasks, on any machine; nothing that teaches also judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sharpen.agents.recorded import replay
from sharpen.errors import SettingsError, SharpenError, TaskError
from sharpen.records import Message, Task
from sharpen.tasks import reasoning_gym, textworld
from sharpen.tasks.base import SPLITS, Splits
from sharpen.tasks.data_file import Jsonl
from sharpen.tasks.load import TaskSource, load_tasks
from sharpen.tasks.overlap import check_overlap
from sharpen.tasks.reasoning_gym import ReasoningGym, extract
from sharpen.tasks.textworld import PRESETS, TextWorld
from sharpen.verifiers.run import judge

SUMS = ReasoningGym(dataset="chain_sum", splits=Splits(train=12, dev=8), seed=3)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SHARPEN_CACHE", str(folder))
        yield folder


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Jsonl]:
    """A data file of the given rows (objects, or raw lines) and settings that read it."""
    (tmp_path / "judge.py").write_text("def same(answer, reference):\n    return answer.strip() == reference\n")

    def write(*lines: dict[str, Any] | str, **settings: Any) -> Jsonl:
        path = tmp_path / "tasks.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return Jsonl(path=str(path), **{"verifier": f"{tmp_path / 'judge.py'}:same", **settings})

    return write


# ---------------------------------------------------------------- TextWorld

FINGERPRINT = """
import asyncio, msgspec
from sharpen.agents.recorded import replay
from sharpen.tasks import textworld
from sharpen.tasks.base import Splits
async def told():
    tasks = textworld.load(textworld.TextWorld(splits=Splits(train=2, dev=1), seed=5))
    played = [await replay(task, tasks.environment, tasks.environment.expert(task)) for task in tasks.tasks]
    return msgspec.json.encode([tasks.name, tasks.tasks, [[trajectory.key, trajectory.messages] for trajectory in played]]).decode()
"""


@pytest.mark.real
async def test_games_are_the_same_in_every_process(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONHASHSEED": "12345", "SHARPEN_CACHE": str(tmp_path)}
    code = FINGERPRINT + "print(asyncio.run(told()))"
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    here: dict[str, Any] = {}
    exec(FINGERPRINT, here)
    assert len(there) > 300
    assert await here["told"]() == there.strip()
    assert await here["told"]() == there.strip()  # read back from the cache


def test_no_game_equals_another() -> None:
    tasks = textworld.load(TextWorld(splits=Splits(demo=5, train=10, dev=5, test=5), rooms=1, objects=4, shortest=1, longest=2))
    assert {split: len(tasks.split(split)) for split in SPLITS} == {"demo": 5, "train": 10, "dev": 5, "test": 5}
    assert len({task.family for task in tasks.tasks}) == len(tasks)
    assert len({tasks.environment.expert(task) for task in tasks.tasks}) == len(tasks)
    assert {len(tasks.environment.expert(task) or ()) for task in tasks.tasks} == {1, 2}
    check_overlap(tasks)


def test_other_settings_are_other_games() -> None:
    def keys(**settings: Any) -> set[str]:
        return {task.key for task in textworld.load(TextWorld(splits=Splits(train=2), **settings)).tasks}

    assert keys() == keys()
    assert not keys() & keys(seed=1)
    assert not keys() & keys(objects=5)


def test_a_damaged_cache_is_made_again(cache: Path) -> None:
    settings = TextWorld(splits=Splits(train=3), seed=9)
    before = textworld.load(settings)
    for path in (cache / "textworld").glob("*.json"):
        path.write_bytes(path.read_bytes()[:100])
    assert textworld.load(settings).tasks == before.tasks


def test_an_unwritable_cache_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path / "file"))
    assert len(textworld.load(TextWorld(splits=Splits(train=2), seed=11))) == 2


def test_a_generator_that_runs_dry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textworld, "TRIES", 1)
    with pytest.raises(TaskError, match="different games of the 40"):
        textworld.load(TextWorld(splits=Splits(train=40), rooms=1, objects=1, shortest=1, longest=1, seed=2))


@pytest.mark.parametrize("wrong", [{"rooms": 0}, {"objects": 99}, {"shortest": 5, "longest": 2}, {"seed": -1}])
def test_textworld_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        TextWorld(splits=Splits(), **wrong)


@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_presets_make_games_that_can_be_won(name: str) -> None:
    tasks = textworld.load(TextWorld(splits=Splits(train=3), **PRESETS[name]))
    for task in tasks.tasks:
        assert (await replay(task, tasks.environment, tasks.environment.expert(task) or ())).outcome["won"] is True


# ---------------------------------------------------------------- reasoning-gym


def test_questions_are_distinct_and_survive_json() -> None:
    tasks = reasoning_gym.load(SUMS)
    assert len({task.family for task in tasks.tasks}) == len(tasks) == 20
    assert msgspec.json.decode(msgspec.json.encode(tasks.tasks), type=tuple[Task, ...]) == tasks.tasks
    assert reasoning_gym.load(SUMS).tasks == tasks.tasks


@pytest.mark.parametrize("dataset", ["chain_sum", "basic_arithmetic", "word_sorting", "leg_counting", "countdown", "spell_backward"])
async def test_gold_answers_score_one(dataset: str) -> None:
    tasks = reasoning_gym.load(ReasoningGym(dataset=dataset, splits=Splits(train=5)))
    assert tasks.verifier
    for task in tasks.tasks:
        played = await replay(task, tasks.environment, tasks.environment.expert(task) or ())
        verdict = judge(task, played, tasks.verifier)
        assert (verdict.outcome, verdict.score) == ("pass", 1.0), verdict
        empty = await replay(task, tasks.environment, [""])
        assert judge(task, empty, tasks.verifier).outcome == "fail"


async def test_a_part_mark_is_no_pass() -> None:
    tasks = reasoning_gym.load(SUMS)
    task = tasks.tasks[0]
    assert tasks.verifier
    verdict = judge(task, await replay(task, tasks.environment, [f"It is {task.reference}, I think"]), tasks.verifier)
    assert verdict.outcome == "fail"
    assert verdict.score is not None and 0 < verdict.score < 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [("42", "42"), (" 42\n", "42"), ("So\nAnswer: 42", "42"), ("answer: 1\nANSWER : 2\n", "2"), ("**Answer:** 42", "42"), ("", "")],
)
def test_extraction(text: str, answer: str) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dataset": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"dataset": "chain_sum", "config": {"min_term": 2}}, "did you mean 'min_terms'"),
        ({"dataset": "chain_sum", "config": {"size": 2}}, "no config key 'size'"),
        ({"dataset": "chain_sum", "config": {"min_terms": 0}}, "refuses its config"),
        ({"dataset": "chain_sum", "config": {"max_terms": 2, "max_digits": 1, "allow_negation": False}}, ""),
    ],
)
def test_reasoning_gym_settings(settings: dict[str, Any], says: str) -> None:
    if not says:
        assert len(reasoning_gym.load(ReasoningGym(splits=Splits(train=3), **settings))) == 3
        return
    with pytest.raises(SettingsError, match=says):
        reasoning_gym.load(ReasoningGym(splits=Splits(train=3), **settings))


# ---------------------------------------------------------------- data files


def questions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What comes after {n}?", "reference": str(n + 1)} for n in range(count)]


async def test_a_data_file(rows: Callable[..., Jsonl]) -> None:
    tasks = load_tasks(rows(*questions(6), splits=Splits(train=4, dev=2)))
    assert (len(tasks.split("train")), len(tasks.split("dev"))) == (4, 2)
    task = tasks.tasks[0]
    assert tasks.verifier
    assert judge(task, await replay(task, tasks.environment, tasks.environment.expert(task) or ()), tasks.verifier).outcome == "pass"
    assert judge(task, await replay(task, tasks.environment, ["no idea"]), tasks.verifier).outcome == "fail"


def test_keys_do_not_depend_on_the_row(rows: Callable[..., Jsonl]) -> None:
    def keys(lines: list[dict[str, Any]]) -> dict[Any, str]:
        return {task.reference: task.key for task in load_tasks(rows(*lines, splits=Splits(train=6))).tasks}

    assert keys(questions(6)) == keys(questions(6)[::-1])


def test_named_splits_and_messages(rows: Callable[..., Jsonl]) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    tasks = load_tasks(rows({"key": "a", "messages": chat, "split": "demo", "gold": "Hi."}, {"key": "b", "prompt": "Ho?", "split": "dev"}))
    assert [(task.key, task.split) for task in tasks.tasks] == [("a", "demo"), ("b", "dev")]
    assert tasks.tasks[0].prompt[0] == Message(role="system", content="Be brief.")
    assert tasks.environment.expert(tasks.tasks[0]) == ("Hi.",)
    assert tasks.environment.expert(tasks.tasks[1]) is None


@pytest.mark.parametrize(
    ("lines", "settings", "says"),
    [
        (["{"], {}, r"tasks\.jsonl:1 is not JSON"),
        (['{"prompt": "x"}', '{"key": "a", "key": "b", "prompt": "y"}'], {}, r"tasks\.jsonl:2 has the key 'key' twice; delete one"),
        (['{"prompt": "\\": ", "reference": [{"\\"": 1, "\\"" : 2}]}'], {}, r"tasks\.jsonl:1 has the key '\"' twice"),
        (["", "[1]"], {}, r"tasks\.jsonl:2 holds list"),
        ([{"promt": "x"}], {}, r"tasks\.jsonl:1 has the unknown field 'promt'; did you mean 'prompt'"),
        ([{"prompt": 3}], {}, r"tasks\.jsonl:1: Expected"),
        ([{"reference": "x"}], {}, r"tasks\.jsonl:1 needs either prompt or messages"),
        ([{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}], {}, "needs either"),
        ([{"messages": [{"role": "assistant", "content": "y"}]}], {}, "belongs in gold"),
        ([{"prompt": "x", "split": "trian"}], {}, "did you mean 'train'"),
        ([{"prompt": "x"}, {"prompt": "x"}], {"splits": Splits(train=1)}, r"tasks\.jsonl:2 has the key .* of line 1"),
        ([{"prompt": "x", "split": "dev"}, {"prompt": "y"}], {}, "1 of 2 rows"),
        ([{"prompt": "x", "split": "dev"}], {"splits": Splits(dev=1)}, "names its own splits"),
        ([{"prompt": "x"}], {}, "names no splits"),
        ([{"prompt": "x"}], {"splits": Splits(train=2)}, "ask for 2 families"),
        ([""], {}, "holds no tasks"),
        ([{"prompt": "x"}], {"path": "missing.jsonl"}, r"missing\.jsonl cannot be read"),
    ],
)
def test_data_files_that_cannot_be_used(rows: Callable[..., Jsonl], lines: list[Any], settings: dict[str, Any], says: str) -> None:
    source = msgspec.structs.replace(rows(*lines), **settings)
    with pytest.raises(SharpenError, match=says) as caught:
        load_tasks(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["dev", "test"])
def test_the_same_question_may_not_teach_and_judge(rows: Callable[..., Jsonl], other: str) -> None:
    with pytest.raises(TaskError, match=r"'a' \(train\) and 'b' \(\w+\) share the question 'two  plus|share the question"):
        load_tasks(
            rows({"key": "a", "prompt": "Two plus two?", "split": "train"}, {"key": "b", "prompt": "two  PLUS two? ", "split": other})
        )
    with pytest.raises(TaskError, match="share family 'f'"):
        load_tasks(rows({"prompt": "x", "split": "demo", "family": "f"}, {"prompt": "y", "split": other, "family": "f"}))


def test_the_same_question_may_teach_twice(rows: Callable[..., Jsonl]) -> None:
    twice = [{"key": "a", "prompt": "x", "split": "demo", "family": "f"}, {"key": "b", "prompt": "x", "split": "train", "family": "f"}]
    assert len(load_tasks(rows(*twice))) == 2


# ---------------------------------------------------------------- the union


@pytest.mark.parametrize("source", [SUMS, TextWorld(splits=Splits(train=2))])
def test_sources_survive_json_and_load(source: TaskSource) -> None:
    again = msgspec.json.decode(msgspec.json.encode(source), type=TaskSource)  # type: ignore[arg-type]
    assert again == source
    assert load_tasks(again).tasks == load_tasks(source).tasks


def test_importing_sources_imports_no_generator() -> None:
    code = "import sys, sharpen.tasks.load; assert not {'textworld', 'reasoning_gym', 'minigrid', 'datasets', 'pyarrow', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
