"""The verbs as a user types them: what is printed, and one line for every mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Ended
from sharpen.cli import main
from sharpen.report.page import render
from sharpen.report.read import read_run


@pytest.fixture
def run(ended: Ended) -> Path:
    return ended.folder


def test_report_and_show_read_a_run_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main(["show", str(run), "--rung", "sft", "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "«" in shown and "kept: it passed" in shown
    assert main(["show", str(run), "--rung", "base", "--task", "rg-", "--limit", "2"]) == 0
    assert "evaluation only: never trains" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["report", "nowhere"], "no such run or work folder: nowhere; "),
        (["show", "nowhere"], "no such run or work folder: nowhere; "),
        (["show", "nowhere", "--limit", "0"], "--limit is 0"),
        (["report", "nowhere", "--bogus"], "unknown argument '--bogus'"),
        (["run"], "name a settings file"),
        (["run", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["run", "nowhere.yaml", "stray"], "unexpected argument 'stray'"),
        (["run", "nowhere.yaml", "--sampling.n"], "--sampling.n needs a value"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


ON_WHAT_IS_THERE = ["verify S W", "select S W", "train S W --out out", "audit S W", "label W", "export W out.jsonl --format trl",
    "export W out --format model", "handoff W", "report W", "show W", "distil W --teacher best-of-2"]  # fmt: skip


@pytest.mark.parametrize("words", ON_WHAT_IS_THERE)
def test_a_mistyped_folder_is_one_line_and_nothing_is_made(
    words: str, scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/quickstart/rungs/002-sft").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for wrong, there in {
        "runs/quikstart": "; did you mean runs/quickstart?",
        "runs/quickstrat/rungs/002-sft": "; did you mean runs/quickstart/rungs/002-sft?",
        "runs/quickstart/rungs/7": "; runs/quickstart/rungs has 002-sft",
        "runs/quickstart/rungs/002-sft/sampling": "; there is no folder in runs/quickstart/rungs/002-sft",
    }.items():
        assert main([{"S": str(scripted), "W": wrong}.get(word, word) for word in words.split()]) == 2
        error = capsys.readouterr().err
        assert f": {wrong}{there}" in error and "no such run" in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_rung_deleted_by_hand_is_named_alike_by_all_who_ask_what_ships(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ships = next(rung.name for rung in read_run(run, samples=0).rungs if rung.shipped)
    shutil.rmtree(run / "rungs" / ships / "model")
    for words in (["handoff", str(run)], ["export", str(run), str(tmp_path / "out"), "--format", "model"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert ships in error and "weights" in error and "gone" in error and "sharpen run" in error and error.count("\n") == 1
    shutil.rmtree(run / "rungs" / ships)
    said = set()
    for words in (
        ["handoff", str(run)],
        ["export", str(run), str(tmp_path / "out"), "--format", "model"],
        ["distil", str(run), "--teacher", "best-of-2"],
    ):
        assert main(words) == 2
        said.add(capsys.readouterr().err)
    gone = f"{run}/rungs/{ships} is gone, so what the run ships is not known; put it back, or give sharpen run again\n"
    assert said == {f"sharpen: {gone}"} and not (tmp_path / "out").exists()
    assert f"{ships} is gone" in render(read_run(run))


def test_nothing_matches_names_the_rungs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run), "--rung", "zzz"]) == 2
    assert "rungs: 000-base, 001-few-shot, 002-sft" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "problem"), [({}, "config"), ({"config.json": "{}"}, "has no weights")])
def test_a_model_folder_that_lacks_something_is_one_line(
    content: dict[str, str], problem: str, scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    assert main(["run", str(scripted), "--model", str(folder), "--runs", str(tmp_path / "runs")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sharpen: ") and str(folder) in last and problem in last


def test_a_damaged_decision_is_named_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "rungs/002-sft/decision.json").write_text("{")
    assert main(["report", str(run)]) == 2
    assert "decision.json cannot be read" in capsys.readouterr().err


def test_keys_are_listed_and_a_closed_pipe_is_no_error() -> None:
    listed = subprocess.run(f"{sys.executable} -m sharpen run --keys | head -1", shell=True, capture_output=True, text=True)
    assert listed.stdout.startswith("--name") and listed.stderr == ""


def test_the_keys_of_one_section_on_any_verb_that_takes_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--keys"]) == 0
    sections = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    assert [line.split()[0] for line in sections[0]] == ["--name"] and all("." in line for line in sections[1])
    sampling = next(block for block in sections if block[0].startswith("--sampling."))
    for verb in ("run", "distil", "advise", "sample", "verify", "select", "train", "eval", "audit"):
        assert main([verb, "--keys", "sampling"]) == 0
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [line.split() for line in sampling]
    assert main(["run", "--keys", "sampling.budget"]) == 0
    assert all(line.startswith("--sampling.budget.") for line in capsys.readouterr().out.splitlines())
    for words, near in (
        (["run", "--keys", "samplng"], "did you mean 'sampling'?"),
        (["report", "r", "--keys"], "unknown argument '--keys'"),
    ):
        assert main(words) == 2
        assert near in (error := capsys.readouterr().err) and error.count("\n") == 1
