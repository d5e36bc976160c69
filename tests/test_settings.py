"""Settings and flags: one definition, and a mistake ends in one line that names the place and the nearest right key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sharpen.cli import main
from sharpen.errors import SettingsError
from sharpen.settings import convert, known_keys, load_settings, to_yaml

MISTAKES = {
    "samplng.n 4": r"unknown setting 'samplng'; did you mean 'sampling'\?",
    "sampling.tempratur 1": r"unknown setting 'sampling\.tempratur'; did you mean 'temperature'\?",
    "sampling.n many": r"sampling\.n: Expected `int`, got `str`",
    "sampling.n 0": "n is 0, but must be at least 1",
    "sampling.temperature 0": "temperature 0 gives the same try 4 times",
    "sampling.temperature -1": "temperature is -1",
    "sampling.top_p 0": "top_p is 0",
    "evaluation.k [1,8]": "k holds 8, but pass@k needs 1 <= k <= n, and n is 4",
    "engine.engine openvno": r"engine\.engine is 'openvno'; did you mean 'openvino'\?",
    "engine openvno": r"engine\.engine is 'openvno'; did you mean 'openvino'\?",
    "tasks.source textwrld": r"tasks\.source is 'textwrld'; did you mean 'textworld'\?",
    "tasks.splits.dve 3": r"unknown setting 'tasks\.splits\.dve'; did you mean 'dev'\?",
    "tasks.splits.dev -3": "splits.dev is -3",
    "training.epochs 0": "epochs is 0, but must be at least 1",
    "ladder.rungs [stf]": r"ladder\.rungs is 'stf'; did you mean 'sft'\?",
    "training.method lore": r"training\.method is 'lore'; did you mean 'lora'\?",
    "ladder.delta -1": "delta is -1",
    "hints.wording It is {referenz}": r"hints: wording has the unknown placeholder \{referenz\}; did you mean \{reference\}\?; its placeholders: \{reference\}",
    "hints.wording It is {}{reference}": r"hints: wording has the unknown placeholder \{\}; its placeholders: \{reference\}",
    "hints.wording It is known": r"hints: wording has no place for the reference; write \{reference\} in it",
    "hints.wording It is {reference": r"hints: wording holds a lone brace; write \{\{ or \}\} for a plain one; its placeholders: \{reference\}",
    "hints.wording It is {reference!r}": r"hints: wording says how \{reference\} is to be printed; write \{reference\} alone",
    "harness.command [python3, '{promt}']": r"harness\.command has the unknown placeholder \{promt\}; did you mean \{prompt\}\?; its placeholders: ",
    "harness {command: [python3, '{prompt}'], env: {URL: '{baseurl}/v1'}}": r"harness\.env\.URL has the unknown placeholder \{baseurl\}",
    "seed [": "not a value that YAML can read",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_mistake_ends_in_one_line(flag: str, scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, value = flag.split(" ", 1)
    assert main(["run", str(scripted), "--runs", str(tmp_path / "runs"), f"--{key}", value]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    import re

    assert re.search(MISTAKES[flag], error), error
    assert not (tmp_path / "runs").exists()


def test_braces_that_are_meant_as_braces_are_let_alone(scripted: Path) -> None:
    wording = 'Say {{"answer": ...}} and think of {reference}.'
    assert (
        load_settings(scripted, {"hints.wording": yaml.safe_dump(wording)}).hints.wording.format(reference="{x}")
        == 'Say {"answer": ...} and think of {x}.'
    )
    command = ["awk", "{print}", "${prompts}", "f'{{prompts}}'", "{prompt}", "{"]
    assert load_settings(scripted, {"harness.command": yaml.safe_dump(command)}).harness.command == tuple(command)  # type: ignore[union-attr]


def test_flags_and_yaml_are_one_definition(scripted: Path) -> None:
    settings = load_settings(scripted, {"sampling.n": "16", "engine": "transformers", "engine.precision": "f32"})
    assert settings.sampling.n == 16
    assert type(settings.engine).__name__ == "Transformers"
    assert convert(yaml.safe_load(to_yaml(settings)), "again") == settings


def test_a_teacher_adds_its_rung_unless_the_rungs_are_given(scripted: Path) -> None:
    taught = load_settings(scripted, {"ladder": "{}", "teacher": "best-of-4"})
    assert taught.ladder.rungs == ("few-shot", "sft", "distillation", "rejection-sampling", "expert-iteration")
    assert "distillation" not in load_settings(scripted, {"ladder": "{}"}).ladder.rungs
    with pytest.raises(SettingsError, match=r"a teacher is set, but ladder\.rungs lacks distillation"):
        load_settings(scripted, {"ladder.rungs": "[sft]", "teacher": "best-of-4"})


def test_every_key_can_be_listed() -> None:
    keys = known_keys()
    assert keys["sampling.n"] == "8"
    assert "tasks.splits.dev" in keys and "training.lora_rank" in keys


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
        ("a: [", "is not YAML"),
        ("name: x", "tasks"),
        ("seed: 1\nseed: 2", "s.yaml is not YAML: the key 'seed' stands there twice; delete one"),
        ("tasks: {seed: 1, seed: 2}", "the key 'seed' stands there twice"),
    ],
)
def test_a_bad_file_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=problem):
        load_settings(path, {})
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(tmp_path / "nothing.yaml", {})


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"name: x\n\xd4\xff\x00")
    with pytest.raises(SettingsError, match=r"s\.yaml is not text in UTF-8 \(byte 8\); name a YAML file"):
        load_settings(path, {})


def test_importing_sharpen_loads_no_torch_and_help_needs_nothing() -> None:
    code = "import sys, sharpen; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; import sharpen.cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
