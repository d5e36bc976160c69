"""The emitted GRPO script as it stands, in a process of its own, on tiny models: what TRL logged, and which tokens had a gradient (``real``)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import sharpen
from sharpen import loop
from sharpen.agents.recorded import replay
from sharpen.chat.masks import rows
from sharpen.chat.template import ChatTemplate
from sharpen.environments.base import assistant_turns
from sharpen.records import Model, Task
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks
from test_on_policy import make  # noqa: F401  # a fixture

pytestmark = pytest.mark.real
PROJECTS = Path(sharpen.__file__).parent / "projects"
HERMES = (Path(__file__).parent.parent / "src/sharpen/chat/templates/hermes.jinja").read_text()
Ways = Callable[[TaskSet, Task], Sequence[Any]]  # the ways to play a task that the model is to know, each as likely

# Runs a script with TRL's loss watched: what each completion was, and at how many of its tokens, own and told, the loss has a gradient.
WATCH = """
import json, runpy, sys
from trl import GRPOTrainer
script, out = sys.argv[1], open(sys.argv[2], "w")
loss, scored = GRPOTrainer._compute_loss, GRPOTrainer._get_per_token_logps_and_entropies

def watched(self, model, inputs):
    def learned(gradient):
        batch = zip(*(inputs[name] for name in ("completion_ids", "completion_mask", "tool_mask", "prompt_ids")), gradient != 0)
        for ids, there, own, prompt, sloped in batch:
            kept = {True: [], False: []}
            for token, mine, slope in zip(ids[there.bool()], own[there.bool()].bool().tolist(), sloped[there.bool()].tolist()):
                kept[mine].append((int(token), slope))
            own, told = ([token for token, _ in kept[mine]] for mine in (True, False))
            counts = [sum(slope for _, slope in kept[mine]) for mine in (True, False)]
            texts = dict(zip(("own", "told", "prompt"), map(self.processing_class.decode, (own, told, prompt))))
            print(json.dumps({**texts, "sloped": counts}), file=out, flush=True)

    def watch(*given, **more):
        logps, *rest = scored(self, *given, **more)
        logps.register_hook(learned)
        return logps, *rest

    self._get_per_token_logps_and_entropies = watch
    try:
        return loss(self, model, inputs)
    finally:
        del self._get_per_token_logps_and_entropies

GRPOTrainer._compute_loss = watched
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""


def taught(folder: Path, model: Model, tasks: TaskSet, ways: Ways, steps: int) -> None:
    """Teach the tiny model to play the tasks of ``tasks``, in any of ``ways``, by heart."""
    import torch
    import transformers

    template = ChatTemplate.load(model.path)
    played = [
        loop.run(replay(task, tasks.environment, assistant_turns(turns, "way")))
        for task in tasks.split("train").tasks
        for turns in ways(tasks, task)
    ]
    made = [row for one in played for row in rows(one, template, "test", 1 << 20)[0]]
    assert len(made) == len(played)
    longest = max(len(row.input_ids) for row in made)
    ids = torch.tensor([[*row.input_ids, *[0] * (longest - len(row.input_ids))] for row in made])
    labels = torch.tensor([[*row.labels, *[-100] * (longest - len(row.labels))] for row in made])
    net = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        loss = net(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    net.save_pretrained(folder)
    template.tokenizer.save_pretrained(folder)


def handed_over(folder: Path, build: Callable[..., Model], tasks: dict[str, Any], ways: Ways, steps: int = 150, **settings: Any) -> Path:
    """A run that ended on a tiny model which knows ``ways`` to play the train tasks."""
    file = folder / "tiny.yaml"
    data = {
        "model": str(folder / "base"),
        "tasks": tasks,
        "sampling": {"max_tokens": 48},
        "evaluation": {"n": 1, "k": [1], "max_tokens": 4},
        "ladder": {"rungs": []},
        "engine": {"engine": "transformers"},
        **settings,
    }
    file.write_text(yaml.safe_dump(data))
    (folder / "base").mkdir()
    resolved = load_settings(file, {})
    known = load_tasks(resolved.tasks, resolved.demonstrations)
    texts = [
        message.content
        for task in known.split("train").tasks
        for turns in ways(known, task)
        for message in loop.run(replay(task, known.environment, assistant_turns(turns, "way"))).messages
    ]
    model = build("tiny", 0, words=600, template=HERMES, positions=4096, texts=[*texts, HERMES], width=64)
    taught(folder / "base", model, known, ways, steps)
    climb(resolved, folder / "runs")
    return folder / "runs" / "tiny"


def trained(run: Path, *flags: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Two updates of the emitted script: what TRL logged at each, every try, and every completion in the loss."""
    watch, seen = run / "watch.py", run / "seen.jsonl"
    watch.write_text(WATCH)
    asked = ["--steps", "2", "--prompts", "2", "--generations", "4", "--tasks", "unmeasured", *flags]
    command = [sys.executable, str(watch), str(run / "rl" / "train_grpo.py"), str(seen), *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    out = run / "rl" / "out"
    read = [[json.loads(line) for line in path.read_text().splitlines()] for path in (out / "episodes.jsonl", seen)]
    return json.loads((out / "log.json").read_text()), read[0], read[1]


def agrees(log: list[dict[str, Any]], tries: list[dict[str, Any]]) -> None:
    """What TRL logged as reward is the mean of what the verifier gave, and some group was worth learning from."""
    steps = [line for line in log if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2] and len(tries) == 16
    for line in steps:
        assert line["reward"] == pytest.approx(sum(one["reward"] for one in tries if one["step"] == line["step"]) / 8)
    assert any(line["frac_reward_zero_std"] < 1 and line["grad_norm"] > 0 for line in steps)


def test_tools_are_called_by_trl_and_their_results_have_no_gradient(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Model],  # noqa: F811
) -> None:
    shutil.copytree(PROJECTS / "tools", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    tools = (tmp_path / "tools.py").read_text().replace("return str(eval(expression))", "return f'{eval(expression)} {[*range(100, 200)]}'")
    assert "range" in tools
    (tmp_path / "tools.py").write_text(tools)  # a result longer than all that the model may sample
    tasks = yaml.safe_load((tmp_path / "run.yaml").read_text())["tasks"]
    tasks["environment"] |= {"system": "Be brief.", "max_turns": 2}
    tasks["splits"] = {"train": 2, "dev": 2}

    def ways(known: TaskSet, task: Task) -> list[Any]:
        right: Any = known.environment.expert(task)
        return [right, [right[0], "No idea."]]

    log, tries, seen = trained(handed_over(tmp_path, make, tasks, ways))
    agrees(log, tries)
    for line in (line for line in log if "reward" in line):
        assert line["tools/call_frequency"] > 0.5 and line["tools/failure_frequency"] < 0.5
    assert len(seen) == 16
    answered = [one for one in seen if one["told"]]
    assert answered
    for one in seen:
        assert one["sloped"][1] == 0 and "tool_response" not in one["own"]
        assert "Be brief." in one["prompt"] and '"name": "calculator"' in one["prompt"]
    for one in answered:
        assert re.fullmatch(
            r"\n<\|im_start\|>user\n<tool_response>\n.*\n</tool_response><\|im_end\|>\n<\|im_start\|>assistant\n", one["told"], re.S
        )
    assert any(one["sloped"][0] for one in answered)


def test_a_text_game_is_played_by_the_rollout_and_what_it_says_has_no_gradient(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Model],  # noqa: F811
) -> None:
    pytest.importorskip("textworld")
    monkeypatch.chdir(tmp_path)
    games = {
        "source": "textworld",
        "seed": 5,
        "rooms": 1,
        "objects": 2,
        "shortest": 2,
        "longest": 2,
        "max_turns": 3,
        "splits": {"train": 2, "dev": 2},
    }

    def ways(known: TaskSet, task: Task) -> list[Any]:
        return [known.environment.expert(task), ["look"] * 3]

    run = handed_over(tmp_path, make, games, ways)
    log, tries, seen = trained(run)
    agrees(log, tries)
    known = load_tasks(load_settings(run / "run.yaml", {}).tasks)
    whole = {}
    for task in known.split("train").tasks:
        commands = known.environment.expert(task)
        won = loop.run(replay(task, known.environment, commands))
        observed = [message.content for message in won.messages[2:] if message.role == "user"]
        whole["".join(f"{command}<|im_end|>" for command in commands)] = "".join(
            f"\n<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n" for said in observed[: len(commands) - 1]
        )
    assert len(seen) == 16 and all(one["sloped"][1] == 0 for one in seen)
    won = [one for one in seen if one["own"] in whole]
    assert won and all(one["told"] == whole[one["own"]] for one in won), (
        "word for word what the environment says, and nothing behind the last turn"
    )
    assert any(one["sloped"][0] for one in won)
