"""A user's own parts, found by name: what a mistake in each says, in one line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharpen import loop, plugins
from sharpen.agents.recorded import replay
from sharpen.cli import main
from sharpen.environments.load import load_environment
from sharpen.environments.plugin import EnvironmentPlugin
from sharpen.errors import EnvironmentFault, PolicyError, SettingsError, SharpenError, TaskError
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.choose import open_policy
from sharpen.policies.plugin import PolicyPlugin
from sharpen.policies.scripted import ScriptedPolicy, scripted_model
from sharpen.records import Lineage, Message, Model
from sharpen.settings import convert, to_yaml
from sharpen.tasks.load import load_tasks
from sharpen.tasks.plugin import TaskPlugin

SOURCE = """
import sys
from sharpen.environments.single_turn import SingleTurn
from sharpen.policies.scripted import ScriptedPolicy, scripted_model
from sharpen.records import Message, Task
from sharpen.tasks.base import TaskSet
from sharpen.verifiers.function import FunctionVerifier
from sharpen.errors import SettingsError

def same(answer, reference):
    return answer == reference

def task(key, split="train", family=None, text=None, **fields):
    return Task(key=key, family=family or key, split=split, prompt=(Message(role="user", content=text or f"What is {key}?"),), **fields)

def make(n, *, environment=None, verifier=FunctionVerifier(same), splits=("train", "dev"), **fields):
    if n < 1:
        raise SettingsError(f"n is {n}, but must be at least 1")
    return TaskSet("mine", tuple(task(str(i), splits[i % 2], **fields) for i in range(n)), environment or SingleTurn(), verifier)

def few(count=2):
    return make(count)

def near():
    words = "one two three four five six seven eight nine ten eleven twelve"
    return TaskSet("near", (task("a", text=words + " one"), task("b", "dev", text=words + " two")), SingleTurn(), None)

def raises(): raise RuntimeError("two\\nlines")
def leaves(): sys.exit(3)
def none(): return None
def text(): return "tasks"
def listed(): return TaskSet("m", [task("1")], SingleTurn(), None)
def empty(): return TaskSet("m", (), SingleTurn(), None)
def twice(): return TaskSet("m", (task("1"), task("1")), SingleTurn(), None)
def straddles(): return make(2, family="f")
def no_verifier(): return make(2, verifier=same)
def no_environment(): return make(2, environment=object())
def unwritable(): return make(2, reference=object())
def strange_split(): return make(2, splits=("train", "dve"))

def single(): return SingleTurn()
def single_or(fault): raise RuntimeError(fault)
def open_(model, word="hi"): return ScriptedPolicy(lambda conversation, rng: word, model.name)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "mine.py"
    path.write_text(SOURCE)
    return str(path)


def model(kind: Any = "pretrained") -> Model:
    return Model(name="m", path="/nowhere", fingerprint="f", kind=kind, lineage=Lineage(base="m"))


def test_a_task_source(file: str) -> None:
    tasks = load_tasks(TaskPlugin(name=f"{file}:make", settings={"n": 4}))
    assert ([task.key for task in tasks.tasks], len(tasks.split("dev"))) == (["0", "1", "2", "3"], 2)


def test_near_duplicates_of_a_task_source_are_looked_for_on_request(file: str) -> None:
    assert len(load_tasks(TaskPlugin(name=f"{file}:near"))) == 2
    with pytest.raises(TaskError, match="nearly a teaching one"):
        load_tasks(TaskPlugin(name=f"{file}:near", max_overlap=0.5))
    with pytest.raises(SettingsError, match="max_overlap is 0"):
        TaskPlugin(name="x:y", max_overlap=0)


@pytest.mark.parametrize(
    ("name", "settings", "kind", "why"),
    [
        ("few", {"cuont": 1}, SettingsError, "has no setting 'cuont'; did you mean 'count'?"),
        ("near", {"n": 1}, SettingsError, "has no setting 'n'; it takes none"),
        ("make", {}, SettingsError, "missing a required argument: 'n'; it takes "),
        ("make", {"n": 0}, SettingsError, "n is 0, but must be at least 1"),
        ("make", {"n": "x"}, TaskError, "raised TypeError"),
        ("raises", {}, TaskError, "raised RuntimeError: two lines"),
        ("leaves", {}, TaskError, "raised SystemExit: 3"),
        ("none", {}, SettingsError, "returned NoneType, which is no TaskSet: it has no name, tasks, environment, verifier"),
        ("text", {}, SettingsError, "returned str, which is no TaskSet"),
        ("listed", {}, TaskError, "tasks as a list; make it a tuple"),
        ("empty", {}, TaskError, "gave no tasks"),
        ("twice", {}, TaskError, "holds the key '1' twice"),
        ("no_verifier", {}, TaskError, "function is no Verifier: it has no name, exact, verify"),
        ("no_environment", {}, TaskError, "object is no Environment: it has no name, max_turns, start, expert"),
        ("unwritable", {}, TaskError, "task '0' cannot be written as JSON"),
        ("strange_split", {}, TaskError, "task '1' has the split 'dve'; did you mean 'dev'?"),
        ("mak", {}, SettingsError, "did you mean 'make'"),
    ],
)
def test_a_task_source_that_does_not_fit_is_one_line(
    file: str, name: str, settings: dict[str, Any], kind: type[SharpenError], why: str
) -> None:
    with pytest.raises(kind) as caught:
        load_tasks(TaskPlugin(name=f"{file}:{name}", settings=settings))
    said = str(caught.value)
    assert why in said and f"task source '{file}:{name}'" in said and "\n" not in said


def test_a_task_source_is_checked_for_overlap(file: str) -> None:
    with pytest.raises(TaskError, match="share family 'f'"):
        load_tasks(TaskPlugin(name=f"{file}:straddles"))


async def test_a_whole_environment(file: str) -> None:
    environment = load_environment(EnvironmentPlugin(name=f"{file}:single"))
    task = load_tasks(TaskPlugin(name=f"{file}:make", settings={"n": 2})).tasks[0]
    assert (await replay(task, environment, ["hi"])).actions == ("hi",)
    with pytest.raises(EnvironmentFault, match="raised RuntimeError: no disk"):
        load_environment(EnvironmentPlugin(name=f"{file}:single_or", settings={"fault": "no disk"}))
    with pytest.raises(SettingsError, match="returned NoneType, which is no Environment: it has no name, max_turns, start, expert"):
        load_environment(EnvironmentPlugin(name=f"{file}:none"))


@pytest.mark.parametrize("kind", ["pretrained", "scripted", "endpoint"])
def test_a_policy_may_run_any_kind_of_model(file: str, kind: str) -> None:
    policy, why = open_policy(model(kind), PolicyPlugin(name=f"{file}:open_", settings={"word": "ho"}))
    assert (policy.name, why) == ("m", f"plugin {file}:open_: as set") and isinstance(policy, ScriptedPolicy)
    asked = Conversation(messages=(Message(role="user", content="?"),))
    assert loop.run(policy.complete(asked, Sampling())).message.content == "ho"


@pytest.mark.parametrize(
    ("name", "settings", "kind", "why"),
    [
        ("open_", {"wrd": "x"}, SettingsError, "has no setting 'wrd'; did you mean 'word'?"),
        ("open_", {"model": "x"}, SettingsError, "has no setting 'model'"),
        ("none", {}, SettingsError, "too many positional arguments; it takes ()"),
        ("same", {"reference": 1}, SettingsError, "returned bool, which is no Policy: it has no name, gives_token_ids, complete, close"),
        ("single_or", {}, PolicyError, "raised RuntimeError: Model(name='m'"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_line(file: str, name: str, settings: dict[str, Any], kind: type[SharpenError], why: str) -> None:
    with pytest.raises(kind) as caught:
        open_policy(model(), PolicyPlugin(name=f"{file}:{name}", settings=settings))
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_plugins_in_a_settings_file(file: str) -> None:
    play = {"environment": "plugin", "name": f"{file}:single"}
    tasks = {"source": "plugin", "name": f"{file}:make", "settings": {"n": 2}}
    settings = convert(
        {"name": "r", "tasks": tasks, "engine": {"engine": "plugin", "name": "x:y"}, "ladder": {"panel": {**tasks, "max_overlap": 0.5}}},
        "here",
    )
    assert settings.tasks == TaskPlugin(name=f"{file}:make", settings={"n": 2}) and settings.engine == PolicyPlugin(name="x:y")
    assert convert(yaml.safe_load(to_yaml(settings)), "again") == settings
    rows = {"source": "jsonl", "path": "t.jsonl", "environment": play}
    assert convert({"name": "r", "tasks": rows}, "here").tasks.environment == EnvironmentPlugin(name=f"{file}:single")  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match=r"unknown setting 'tasks\.setings'; did you mean 'settings'"):
        convert({"name": "r", "tasks": {"source": "plugin", "name": "x", "setings": {}}}, "here")


LADDER = """
from sharpen.environments.single_turn import SingleTurn
from sharpen.policies.scripted import open_scripted
from sharpen.records import Message, Task
from sharpen.tasks.base import TaskSet, split_by_family
from sharpen.verifiers.function import FunctionVerifier

def tasks(size):
    def one(a, b):
        asked = (Message(role="user", content=f"What is {a} + {b}?"),)
        return Task(key=f"{a}+{b}", family=f"{a}+{b}", prompt=asked, params={"gold": str(a + b)}, reference=str(a + b))
    given = split_by_family([one(a, b) for a in range(8) for b in range(a + 1)], {"demo": size, "train": size, "dev": size, "test": 4}, 1)
    return TaskSet("sums", given, Room(), FunctionVerifier(lambda answer, reference: answer == reference, "same", exact=True))

class Room(SingleTurn):
    name = "room"

def open_(model):
    return open_scripted(model)
"""


def test_a_run_of_somebodys_own_tasks_environment_and_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "parts.py").write_text(LADDER)
    scripted_model(tmp_path / "base", skill=0.3)
    given = {
        "model": str(tmp_path / "base"),
        "tasks": {"source": "plugin", "name": f"{tmp_path}/parts.py:tasks"},
        "engine": {"engine": "plugin", "name": f"{tmp_path}/parts.py:open_"},
        "evaluation": {"n": 2, "k": [1], "max_n": 2},
        "ladder": {"rungs": ["sft"]},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(given))
    command = ["run", str(tmp_path / "own.yaml"), "--runs", str(tmp_path / "runs")]
    assert main([*command, "--tasks.settings.sise", "6"]) == 2
    assert "has no setting 'sise'; did you mean 'size'?" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs")
    assert main([*command, "--tasks.settings.size", "6"]) == 0
    assert "ships: " in capsys.readouterr().out
    ledger = (tmp_path / "runs" / "own" / "ledger.jsonl").read_text()
    assert f"plugin {tmp_path}/parts.py:open_: as set" in ledger and '"environment":"room"' in ledger.replace(" ", "")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a package with the given source and entry points on the path, as an installer would."""

    def install(source: str, points: str) -> None:
        (tmp_path / "our_parts.py").write_text(source)
        info = tmp_path / "our_parts-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our_parts\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "our_parts", raising=False)

    return install


def test_every_kind_of_part_can_be_an_entry_point(installed: Callable[[str, str], None]) -> None:
    points: dict[plugins.Kind, str] = {
        "verifier": "same",
        "tool": "same",
        "expert": "same",
        "environment": "single",
        "task source": "make",
        "policy": "open_",
    }
    groups = [f"[{plugins.GROUPS[kind]}]\nours = our_parts:{name}\nbroken = no_such_module:f\n" for kind, name in points.items()]
    installed(SOURCE, "\n".join(groups))
    assert len(load_tasks(TaskPlugin(name="ours", settings={"n": 2}))) == 2
    assert open_policy(model(), PolicyPlugin(name="ours"))[0].name == "m"
    assert load_environment(EnvironmentPlugin(name="ours")).name == "single_turn"
    for kind in plugins.GROUPS:
        assert plugins.load("ours", kind).__module__ == "our_parts"
        for name, why in {"our": "did you mean 'ours'", "broken": "ModuleNotFoundError"}.items():
            with pytest.raises(SettingsError, match=why):
                plugins.load(name, kind)
