"""What the documents say is so: commands, settings, sizes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from sharpen.policies.choose import open_policy
from sharpen.policies.scripted import scripted_model
from sharpen.records import Lineage, Model
from sharpen.settings import convert, known_keys, load_settings
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.load import PROPERTIES, VerifierSettings

ROOT = Path(__file__).parent.parent
KEYS = known_keys()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_flags_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"(?:bash|python|sharpen run) ((?:scripts|examples|benchmarks)/[\w./-]+)", text):
        assert (ROOT / name).exists(), name
    for key in re.findall(r"`(?:--)?((?:sampling|evaluation|training|ladder|selection|few_shot|tasks)\.[a-z_.]+)", text):
        assert any(known == key or known.startswith(key + ".") for known in KEYS), key
    for target in re.findall(r"\]\((?!https?:)([\w./-]+)\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_valid(example: Path) -> None:
    assert load_settings(example, {}).name == example.stem


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its pages otherwise in other versions")
def test_every_verb_is_documented_as_it_is() -> None:
    shown = subprocess.run([sys.executable, str(ROOT / "scripts/cli_docs.py"), "--check"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_the_table_of_verifiers_is_what_they_say_of_themselves() -> None:
    shown = subprocess.run([sys.executable, str(ROOT / "scripts/verifier_docs.py"), "--check"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    kinds = {str(kind.__struct_config__.tag) for kind in get_args(VerifierSettings)}
    assert kinds == set(PROPERTIES)


def test_the_table_of_attacks_is_what_the_tests_try() -> None:
    shown = subprocess.run([sys.executable, str(ROOT / "scripts/attack_docs.py"), "--check"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_the_advisors_table_is_what_its_rules_say() -> None:
    shown = subprocess.run([sys.executable, str(ROOT / "scripts/advisor_docs.py"), "--check"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_the_verifiers_settings_on_the_page_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/verifiers.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```\n", page, flags=re.DOTALL)
    given = [yaml.safe_load(line)["verifier"] for line in blocks[0].splitlines()] + [
        yaml.safe_load(line) for line in blocks[1].splitlines()
    ]
    assert len(given) == 16
    for one in given:
        convert({"name": "x", "tasks": {"source": "jsonl", "path": "x", "verifier": one}}, "docs/verifiers.md")


def test_the_flat_ladder_is_short_and_runs(tmp_path: Path) -> None:
    loop = ROOT / "examples/loop.py"
    assert len(loop.read_text().splitlines()) < 120
    scripted_model(tmp_path / "fake", skill=0.5)
    command = [sys.executable, str(loop), "--model", str(tmp_path / "fake"), "--games", "3", "--rounds", "1"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"base: pass@1 0\.0% \[0\.0%, \d+\.\d%\]", shown.stdout)
    assert "test, what ships" in shown.stdout


PARTS = ("verifier", "game", "tasks", "engine")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with all that the plugins page shows, and the data that it names."""
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), flags=re.DOTALL)
    assert sorted(name for name, _ in blocks) == sorted(
        name for part in PARTS for name in (f"my_{part}.py", f"my_{part}.yaml", f"test_my_{part}.py")
    )
    for name, text in blocks:
        (tmp_path / name).write_text(text)
        assert name.startswith("test_") or len([line for line in text.splitlines() if line.strip()]) <= 15, name
    rows = [
        {"prompt": f"Game {n}: guess my number, 1 to 3.", "reference": str(n), "split": split}
        for n, split in enumerate(("demo", "train", "dev"))
    ]
    for data in ("questions", "secrets"):
        (tmp_path / f"{data}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.real  # pytest within pytest
def test_the_parts_on_the_plugins_page_pass_their_own_tests(parts: Path) -> None:
    shown = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=parts, capture_output=True, text=True)
    assert shown.returncode == 0 and "4 passed" in shown.stdout, shown.stdout


def test_the_parts_on_the_plugins_page_load_by_name(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parts)
    settings = {}
    for part in PARTS:
        given = yaml.safe_load((parts / f"my_{part}.yaml").read_text())
        settings[part] = convert({"name": part, "tasks": {"source": "jsonl", "path": "questions.jsonl"}, **given}, part)
    verifier = load_tasks(settings["verifier"].tasks).verifier
    assert verifier is not None and (verifier.name, verifier.exact) == ("my_verifier.py:verify", True)
    assert load_tasks(settings["game"].tasks).environment.name == "guess-1-3"
    assert len(load_tasks(settings["tasks"].tasks)) == 52
    model = Model(name="m", path="", fingerprint="", lineage=Lineage(base="m"))
    policy, _ = open_policy(model, settings["engine"].engine)
    assert vars(policy) == {"name": "m", "highest": 20}
