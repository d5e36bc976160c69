"""The verbs as a user types them: what is printed, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Ended
from sharpen.cli import main


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
        (["report", "nowhere"], "there is no run in nowhere"),
        (["show", "nowhere"], "there is no run in nowhere"),
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
