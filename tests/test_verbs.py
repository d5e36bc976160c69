"""The steps one by one, on files: what each leaves for the next, what each says, and the projects they start from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FEW, Ended
from sharpen import projects
from sharpen.cli import main, make_parser
from sharpen.errors import SettingsError
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.store.run import Run
from sharpen.tasks.load import load_tasks


def test_sample_verify_select_train_eval_and_show(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, model = tmp_path / "tries", tmp_path / "model"
    assert main(["sample", str(scripted), str(work), "--sampling.n", "4"]) == 0
    assert "tries of" in capsys.readouterr().out
    before = (sorted((work / "trajectories").iterdir()), sorted(p.read_bytes() for p in (work / "trajectories").iterdir()))
    assert main(["sample", str(scripted), str(work), "--sampling.n", "4"]) == 0  # nothing is made again
    assert before == (sorted((work / "trajectories").iterdir()), sorted(p.read_bytes() for p in (work / "trajectories").iterdir()))
    assert main(["verify", str(scripted), str(work)]) == 0
    assert main(["select", str(scripted), str(work)]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["train", str(scripted), str(work), "--out", str(model)]) == 0
    assert (model / "scripted.json").exists()
    base, after = tmp_path / "base", tmp_path / "after"
    assert main(["eval", str(scripted), str(base)]) == 0
    assert main(["eval", str(scripted), str(after), "--model", str(model)]) == 0
    rates = [json.loads((folder / "evaluation.json").read_bytes())["pass_at"]["1"]["value"] for folder in (base, after)]
    assert rates[1] > rates[0]
    assert "pass@1 on dev" in capsys.readouterr().out
    assert main(["show", str(work), "--why-kept"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    selection = json.loads((work / "selection.json").read_bytes())
    assert len(lines) == len(selection["kept"]) + len(selection["left_out"])  # every row answers why, every absent one why not
    assert all(("kept: " in line) != ("left out: " in line) for line in lines)
    assert main(["show", str(work), "--failed", "--why-kept"]) == 0
    assert all(" fail  left out: " in line for line in capsys.readouterr().out.strip().splitlines())


def test_a_step_too_early_says_what_comes_before(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = str(tmp_path / "w")
    Path(work).mkdir()
    for words, why in {
        ("verify", str(scripted), work): "holds no trajectories; make some with sharpen sample",
        ("select", str(scripted), work): "holds no trajectories",
        ("train", str(scripted), work, "--out", str(tmp_path / "m")): "holds no trajectories",
        ("sample", str(scripted), work, "--split", "tset"): "no split 'tset'",
        ("show", work): "there is no run in",
    }.items():
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1, words
    assert main(["sample", str(scripted), work]) == 0
    capsys.readouterr()
    assert main(["select", str(scripted), work]) == 2
    assert "are not judged; run sharpen verify first" in capsys.readouterr().err
    assert main(["train", str(scripted), work, "--out", str(tmp_path / "m")]) == 2
    assert "run sharpen select first" in capsys.readouterr().err
    assert main(["verify", str(scripted), work, "--tasks.seed", "99"]) == 2
    assert "which the settings' tasks lack" in capsys.readouterr().err
    held = Run.hold(Path(work))
    try:
        assert main(["verify", str(scripted), work]) == 2
        assert "is in use by process" in capsys.readouterr().err
    finally:
        held.close()
    assert main(["train", str(scripted), work, "--out", work]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", projects.KINDS)
def test_a_project_is_short_and_its_settings_and_tasks_hold(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = projects.write(kind, tmp_path / "mine")
    assert sum(len(path.read_text().splitlines()) for path in files) < 60
    monkeypatch.chdir(tmp_path / "mine")
    tasks = load_tasks(load_settings(Path("run.yaml"), {}).tasks)
    assert all(tasks.split(split).tasks for split in ("demo", "train", "dev", "test"))
    demo = tasks.split("demo").tasks[0]
    assert tasks.environment.expert(demo) if tasks.recorded is None else tasks.recorded.of(demo)


def test_init_refuses_what_is_there_and_names_what_is_near(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "tool", str(tmp_path / "a")]) == 2
    assert "did you mean 'tools'" in capsys.readouterr().err
    assert main(["init", "tools", str(tmp_path / "a")]) == 0
    assert "sharpen run run.yaml" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="is not empty"):
        projects.write("tools", tmp_path / "a")


def test_every_verb_has_help_with_an_example() -> None:
    for name, verb in make_parser()._subparsers._group_actions[0].choices.items():  # type: ignore[union-attr, attr-defined]
        page = verb.format_help()
        assert f"Example: sharpen {name} " in page and len(verb.description or "") > 30, name


def test_traces_come_in_are_judged_train_and_go_out(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = load_tasks(load_settings(scripted, {}).tasks).split("train").tasks
    traces = tmp_path / "traces.jsonl"
    answers = [task.reference if at % 2 else "no idea" for at, task in enumerate(tasks)]
    rows = [
        {"messages": [{"role": "user", "content": task.prompt[-1].content}, {"role": "assistant", "content": answer}]}
        for task, answer in zip(tasks, answers, strict=True)
    ]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    work = tmp_path / "work"
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "{teacher: a person, licence: CC0-1.0, settled_by: that person, settled_on: 2026-01-01, evidence: https://example.org/letter}"
    )
    assert main(["import", str(traces), str(work), "--tasks", str(scripted), "--terms", str(terms)]) == 0
    assert f"{len(tasks)} of {len(tasks)} trajectories" in capsys.readouterr().out
    assert main(["verify", str(scripted), str(work)]) == 0
    assert f"{len(tasks) // 2} pass" in capsys.readouterr().out
    assert main(["select", str(scripted), str(work)]) == 0
    assert main(["train", str(scripted), str(work), "--out", str(tmp_path / "model")]) == 0
    out = tmp_path / "kept.jsonl"
    assert main(["export", str(work), str(out), "--format", "trl"]) == 0
    assert len(out.read_text().splitlines()) == len(tasks) // 2  # what was selected, nothing else
    capsys.readouterr()
    assert main(["export", str(work), str(out), "--format", "tlr"]) == 2
    assert "did you mean 'trl'" in capsys.readouterr().err
    traces.write_text(traces.read_text() + "{broken\n")
    assert main(["import", str(traces), str(tmp_path / "other")]) == 2
    assert f"traces.jsonl:{len(tasks) + 1}" in capsys.readouterr().err and not list((tmp_path / "other").rglob("*.jsonl"))
    assert main(["import", str(traces), str(tmp_path / "other"), "--lenient"]) == 0
    assert "left out: not JSON" in capsys.readouterr().out
    traces.write_text(json.dumps({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}))
    assert main(["import", str(traces), str(tmp_path / "third"), "--tasks", str(scripted)]) == 2
    assert "which no task of the settings asks" in capsys.readouterr().err


ASK_ONCE = """
import json, os, sys, urllib.request
body = json.dumps({"model": "any", "messages": [{"role": "user", "content": sys.argv[1]}]}).encode()
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""


def test_a_ladder_with_an_outside_program_as_the_agent(scripted: Path, tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(ASK_ONCE)
    harness = json.dumps({"command": [sys.executable, str(program), "{prompt}"]})
    smaller = {
        "tasks.splits": "{demo: 2, train: 4, dev: 4, test: 0}",
        "sampling.n": "2",
        "evaluation.n": "1",
        "evaluation.k": "[1]",
        "ladder.retries": "0",
    }
    settings = load_settings(scripted, {"harness": harness, "ladder.rungs": "[few-shot, rejection-sampling]", **smaller})
    climb(settings, tmp_path / "runs")
    base, few_shot, sampled = (rung for rung in read_run(tmp_path / "runs" / "ladder").rungs if not rung.control)
    assert base.dev is not None and base.dev.errors == 0 and base.sampled_tokens > 0
    assert few_shot.decision is not None and "an outside program writes its own prompts" in few_shot.decision.reasons[0]
    rows = [
        json.loads(line) for line in (tmp_path / "runs/ladder/rungs" / sampled.name / "training_set/rows.jsonl").read_text().splitlines()
    ]
    assert {row["origin"] for row in rows if row["source"] == "sampled"} == {"sampled"}  # the engine's ids, through the proxy


def test_the_longest_line_that_is_read_can_be_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"messages": [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    for longest, code, says in (("1000", 2, "raise max_bytes (--max-bytes)"), ("0", 2, "must be at least 1"), ("10000", 0, "")):
        assert (
            main(["import", str(tmp_path / "t.jsonl"), str(tmp_path / f"w{longest}"), "--format", "openai", "--max-bytes", longest]) == code
        )
        assert says in capsys.readouterr().err


def test_a_rungs_kept_tries_go_out_and_no_others(climbed: Ended, tmp_path: Path) -> None:
    rung = climbed.folder / "rungs/003-rejection-sampling"
    tries = {line for path in (rung / "sampling/trajectories").glob("*.jsonl") for line in path.read_bytes().splitlines()}
    own = {json.dumps(json.loads(line)["key"]) for line in tries}
    kept = [key for key in json.loads((rung / "selection.json").read_bytes())["kept"] if json.dumps(key) in own]
    for name in (rung, rung / "sampling"):
        assert main(["export", str(name), str(tmp_path / f"{name.name}.jsonl"), "--format", "atif"]) == 0
        assert len((tmp_path / f"{name.name}.jsonl").read_text().splitlines()) == len(kept) < len(tries)


def test_a_whole_run_is_told_which_of_its_stages_can_go_out(climbed: Ended, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (climbed.folder, climbed.folder / "rungs/002-sft"):
        assert main(["export", str(name), str(tmp_path / "rows.jsonl"), "--format", "trl"]) == 2
        error = capsys.readouterr().err
        assert f"{name} is a run, or a part of one, and holds no trajectories itself; name one of " in error and error.count("\n") == 1
        named = error.strip().partition("name one of ")[2].split(", ")
        assert f"{climbed.folder}/rungs/003-rejection-sampling/sampling" in named
        assert main(["export", named[-1], str(tmp_path / "rows.jsonl"), "--format", "trl"]) == 0
        capsys.readouterr()


def test_what_judges_does_not_teach(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = str(tmp_path / "w")
    for split in ("train", "dev"):
        assert main(["sample", str(scripted), work, "--split", split, "--sampling.n", "2"]) == 0
    assert main(["verify", str(scripted), work]) == 0
    assert main(["select", str(scripted), work]) == 0
    assert "80  of a task in dev, which judges" in capsys.readouterr().out
    dev = {task.key for task in load_tasks(load_settings(scripted, {}).tasks).split("dev").tasks}
    assert not dev & {key["task"] for key in json.loads((tmp_path / "w/selection.json").read_bytes())["kept"]}


def test_nobody_reading_does_not_stop_a_run(scripted: Path, tmp_path: Path) -> None:
    """`sharpen run ... 2>&1 | head -1` once hung for ever: the pipe broke inside the thread that all work runs in."""
    command = (
        f"{sys.executable} -m sharpen run {scripted} --runs {tmp_path / 'r'} --ladder.rungs '[]' --tasks.splits '{FEW}' 2>&1 | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)
    assert done.stdout.count("\n") == 1 and (tmp_path / "r/ladder/report.html").exists()
