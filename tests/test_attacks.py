"""Code that sets out to pass without solving the task passes with graders that are naive, and never in the sandbox."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import ATTACKS, FIELD, HARMS, OURS, SETUPS, VERDICT
from naive import GRADERS, LIMITS, OUTPUT_MB, Naive, listener
from sharpen.verifiers.code import Code, CodeVerifier
from test_code import ADD, ASK, GOOD, PRINTED, says
from test_sandbox import tree

pytestmark = pytest.mark.real  # processes of its own, killed and timed


@pytest.fixture(scope="module")
def verifier(sandbox: None) -> Iterator[CodeVerifier]:
    made = CodeVerifier(
        Code(timeout_s=LIMITS.wall_s, memory_mb=LIMITS.memory_mb, processes=LIMITS.processes, disk_mb=LIMITS.disk_mb, output_mb=OUTPUT_MB)
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listener() as port:
        yield port


@pytest.fixture
def naive(sandbox: None, tmp_path: Path, port: int) -> Naive:
    return Naive(tmp_path, port)


def test_there_are_as_many_as_were_asked_for() -> None:
    assert len(FIELD) == 12
    assert len(OURS) >= 20
    assert len(ATTACKS) == len(FIELD) + len(OURS)
    assert sum(not one.outside for one in ATTACKS.values()) == 2
    assert all(one.outside in ({} if one.why else HARMS if one.gets == "harm" else SETUPS) or one.why for one in ATTACKS.values())
    assert SETUPS.keys() == GRADERS.keys()


@pytest.mark.parametrize("setup", SETUPS)
def test_a_naive_grader_grades(naive: Naive, setup: str) -> None:
    assert naive.graded(setup, "def add(a, b): return None") == "fail"
    assert naive.graded(setup, GOOD) == "pass"


@pytest.mark.parametrize("name", [name for name, one in ATTACKS.items() if one.gets in ("pass", "broken")])
def test_attacks_on_a_grader_are_attacks(naive: Naive, name: str) -> None:
    """Each passes, or leaves the grader without a verdict, where it is naive: the sandbox and its judge are what stops it."""
    attack = ATTACKS[name]
    outcomes = [naive.graded(attack.outside, attack.code, attack.test) for _ in range(attack.runs)]
    assert outcomes == ["fail"] * (attack.runs - 1) + [attack.gets]


@pytest.mark.parametrize("name", [name for name, one in ATTACKS.items() if one.gets == "harm"])
def test_attacks_on_the_machine_are_attacks(naive: Naive, name: str) -> None:
    attack = ATTACKS[name]
    assert naive.harmed(attack.outside, attack.code, attack.test)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_passes(verifier: CodeVerifier, naive: Naive, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """All that a naive grader leaves about is there for it, and so is the listener."""
    attack = ATTACKS[name]
    monkeypatch.chdir(naive.folder)
    for file in ("solution.py", "test_solution.py", "tmp/reward.txt"):
        (naive.folder / file).write_text("0")
    places = (naive.folder, Path(tempfile.gettempdir()), Path.home())
    files = {path for place in places for path in place.iterdir()}
    held = {path: path.read_text() for path in naive.folder.rglob("*") if path.is_file()}
    assert says(verifier, ADD, GOOD)
    before = len(tree(os.getpid()))
    for _ in range(attack.runs):
        verdict = says(verifier, ADD | {"test": attack.test}, attack.code.replace("PORT", str(naive.port)))
        assert verdict.outcome == VERDICT, verdict.reason  # nor does it turn a fail into an error
    assert len(tree(os.getpid())) <= before
    assert says(verifier, ADD, GOOD), "and what comes after is judged as before"
    assert {path: path.read_text() for path in naive.folder.rglob("*") if path.is_file()} == held
    new = {path.name for place in places for path in place.iterdir()} - {path.name for path in files}
    assert not [name for name in new if any(word in name for word in ("reward", "verdict", "conftest", "known", "full", "customize"))]


@pytest.mark.parametrize("name", ["endless output", "fork bomb", "sys.exit(0)", "zombie grandchildren", "an __eq__ that always agrees"])
def test_no_attack_passes_as_a_program(verifier: CodeVerifier, name: str) -> None:
    assert says(verifier, PRINTED, ASK)
    assert says(verifier, PRINTED, f"{ATTACKS[name].code}\nadd(2, 3)").outcome == VERDICT
