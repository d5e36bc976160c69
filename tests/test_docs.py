"""What the documents say is so: commands, settings, sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharpen.policies.scripted import scripted_model
from sharpen.settings import known_keys, load_settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_flags_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"(?:bash|python|sharpen run) ((?:scripts|examples|benchmarks)/[\w./-]+)", text):
        assert (ROOT / name).exists(), name
    for key in re.findall(r"`(?:--)?((?:sampling|evaluation|training|ladder|selection|few_shot|tasks)\.[a-z_.]+)", text):
        assert any(known == key or known.startswith(key + ".") for known in known_keys()), key
    for target in re.findall(r"\]\((?!https?:)([\w./-]+)\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_valid(example: Path) -> None:
    assert load_settings(example, {}).name == example.stem


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its pages otherwise in other versions")
def test_every_verb_is_documented_as_it_is() -> None:
    shown = subprocess.run([sys.executable, str(ROOT / "scripts/cli_docs.py"), "--check"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_the_flat_ladder_is_short_and_runs(tmp_path: Path) -> None:
    loop = ROOT / "examples/loop.py"
    assert len(loop.read_text().splitlines()) < 120
    scripted_model(tmp_path / "fake", skill=0.5)
    command = [sys.executable, str(loop), "--model", str(tmp_path / "fake"), "--games", "4", "--rounds", "1"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"base: pass@1 0\.0% \[0\.0%, \d+\.\d%\]", shown.stdout)
    assert "test, what ships" in shown.stdout
