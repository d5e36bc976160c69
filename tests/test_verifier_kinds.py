"""The verifiers that come with sharpen, each on what it must pass, what must not pass, and what breaks others' verifiers."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from conftest import runs, wait_until
from sharpen.errors import SettingsError, TaskError
from sharpen.records import Message, SampleKey, Task, Trajectory, Verdict
from sharpen.settings import convert, to_yaml
from sharpen.tasks.load import load_tasks
from sharpen.testing import check_verifier
from sharpen.verifiers.base import Described, Properties
from sharpen.verifiers.combine import Combination
from sharpen.verifiers.load import VerifierSettings, load_verifier
from sharpen.verifiers.run import judge
from sharpen.verifiers.workers import Pool

pytestmark = pytest.mark.real  # processes of its own, killed and timed

KEY = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")


def made(given: Any) -> Described:
    return load_verifier(msgspec.convert({"verifier": given} if isinstance(given, str) else given, VerifierSettings))


def task(reference: Any, key: str = "t") -> Task:
    prompt = (Message(role="user", content="?"),)
    return Task(key=key, family=key, prompt=prompt, params={"gold": reference} if isinstance(reference, str) else {}, reference=reference)


def tried(answer: str) -> Trajectory:
    return Trajectory(key=KEY, agent="m", messages=(Message(role="assistant", content=answer),), stop="done")


def verdict(verifier: Any, reference: Any, answer: str) -> Verdict:
    return judge(task(reference), tried(answer), made(verifier) if isinstance(verifier, str | dict) else verifier)


# ---------------------------------------------------------------- short answers


@pytest.mark.parametrize(
    ("settings", "reference", "right", "wrong"),
    [
        ({}, "Paris", ["Paris", "  Paris\n"], ["paris", "Paris.", "It is Paris", "", "Pari\u0455", "Par\x00is"]),
        ({}, ["yes", "y"], ["yes", "y"], ["no", "yes y"]),
        ({}, 4, ["4"], ["4.0", "٤"]),
        ({}, "é", ["e\u0301"], ["e"]),
        ({"ignore": ["case", "punctuation"]}, "Paris", ["PARIS!", "«paris»"], ["Paris, France"]),
        ({"ignore": ["punctuation"]}, "5", ["(5)", "5."], ["-5", ".5", "5%", "5/2"]),
        ({"ignore": ["punctuation", "space"]}, "1.5", ["1.5."], ["15", "1,5"]),
        ({"ignore": ["space"]}, "a b", ["ab", "a\n b"], ["a-b"]),
        ({"part": "last_line"}, "Paris", ["So:\n\nParis\n\n"], ["Paris\nor Rome"]),
        ({"part": "boxed"}, "{1}", [r"\boxed{2} no \boxed{{1}}"], ["{1}", r"\boxed{{1}", r"\boxed{{1}} \boxed{2}", r"\boxed{{1}} \boxed{"]),
        ({"part": "code"}, "x", ["```\nx\n```", "```py\ny\n```\n```py\nx\n```\n", "x"], ["```\nx\n```\n```\ny\n```"]),
        ({"after": "(?i)answer:"}, "4", ["Answer: 5\nANSWER: 4\nGood luck", "answer:\n\n4"], ["4", "Answer: 4 or 5", "Answer:"]),
    ],
)  # fmt: skip
def test_exact(settings: dict[str, Any], reference: Any, right: list[str], wrong: list[str]) -> None:
    verifier = made({"verifier": "exact", **settings})
    assert [answer for answer in right if not verdict(verifier, reference, answer)] == []
    assert [answer for answer in wrong if verdict(verifier, reference, answer).outcome != "fail"] == []


@pytest.mark.parametrize(
    ("settings", "reference", "right", "wrong"),
    [
        (
            {}, "1234.5",
            ["1,234.5", "1234.50", "So it is $1,234.5.", "$1{,}234.5$", "1.2345e3", "1.2345 x 10^3", r"1.2345 \times 10^{3}", "= 2469/2", "1234 1/2"],
            ["1234", "12,34.5", "1 234.5", "-1234.5", "1234.5.6", "1234.5^2", "x1234.5", "", "NaN", "inf", "1_234.5", "1234.5²", "2**1234.5"],
        ),
        ({}, 0.5, ["1/2", r"\frac{1}{2}", "50%", r"$50\%$", ".5", "0.50"], ["50", "1/0", "5/10/2024", "½"]),
        ({"percent": "as_written"}, 50, ["50%", "50"], ["0.5"]),
        ({}, -3, ["-3", "x = -3", "\u22123", "-$3"], ["3", "10-3", "5 - 3", "x-3", "--3²"]),
        ({}, "10", ["10 km", "10km", "**10**", "7 + 3 = 10"], ["\u0663 1\u0660", "10 then 11", "1e999999999999", "9" * 5000, "2^10", "0x10", "1.5e10"]),
        ({"take": "only"}, 7, ["7", " $7$ ", "7."], ["7 km", "it is 7", "7 7"]),
        ({"tolerance": 0.01}, 3.14159, ["3.14", "3.15"], ["3.1", "1e400", "NaN"]),
        ({"relative": 0.1}, -100, ["-90", "-110"], ["100", "-89.9", "-110.1"]),
        ({}, "1" + "0" * 400, ["1e400", "1" + "0" * 400], ["1e401", "inf"]),
    ],
)  # fmt: skip
def test_numeric(settings: dict[str, Any], reference: Any, right: list[str], wrong: list[str]) -> None:
    verifier = made({"verifier": "numeric", **settings})
    assert [answer for answer in right if not verdict(verifier, reference, answer)] == []
    assert [answer for answer in wrong if verdict(verifier, reference, answer).outcome != "fail"] == []


def test_choice() -> None:
    right = [
        "A", "(A)", "a", "A.", "**A**", "The answer is A", "The answer is (A).", "Answer: A because it fits", "A) Paris", r"\boxed{\text{A}}",
        "B looks good.\nThe answer is A.", "The correct answer is:\n\n(A) Paris", "A is correct",
    ]  # fmt: skip
    wrong = [
        "A or B", "B or A", "not A", "The answer is not A", "It can't be A", "A dog", "The answer is A dog", "A, B", "A and B", "B, not A", "A/B/C/D",
        "", "ABCD", "answer: a or b", r"\boxed{A} \boxed{B}", "The answer is A\nThe answer is B", "\u0410", "E", "I think", "answer", "neither A nor B",
    ]  # fmt: skip
    verifier = made("choice")
    assert [answer for answer in right if not verdict(verifier, "A", answer)] == []
    assert [answer for answer in wrong if verdict(verifier, "A", answer).outcome != "fail"] == []


# ---------------------------------------------------------------- JSON and patterns


def test_json_as_data() -> None:
    reference = {"a": [1, 2.5, True, None], "b": "é"}
    right = ['{"b": "\\u00e9", "a": [1.0, 2.50, true, null]}', 'Here:\n```json\n{"a": [1, 2.5, true, null], "b": "é"}\n```\nDone.']
    wrong = [
        '{"a": [2.5, 1, true, null], "b": "é"}', '{"a": [1, 2.5, 1, null], "b": "é"}', '{"a": [1, 2.5, true, null], "b": "é", "b": "é"}',
        '{"a": [1, 2.5, true], "b": "é"}', '{"a": [1, 2.5, true, NaN], "b": "é"}', "", "null", "{'a': 1}", '"a"', "[" * 5000 + "]" * 5000, "9" * 5000,
        '{"a": [1, 2.5, true, null], "b": "é"} ok', '{"a": 1e999}', "\x00", '{"\\ud800": 1}',
    ]  # fmt: skip
    verifier = made("json")
    assert [answer for answer in right if not verdict(verifier, reference, answer)] == []
    assert [answer for answer in wrong if verdict(verifier, reference, answer).outcome != "fail"] == []
    assert verdict(verifier, "1e999", "1e999").outcome == "error"


def test_json_by_a_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    verifier = made({"verifier": "json", "schema": schema})
    assert verdict(verifier, None, '{"n": 1}')
    assert "$.n" in verdict(verifier, None, '{"n": "1"}').reason
    (tmp_path / "s.json").write_text(msgspec.json.encode(schema).decode())
    first = made({"verifier": "json", "schema": str(tmp_path / "s.json")})
    assert verdict(first, None, '{"n": 1}')
    (tmp_path / "s.json").write_text("{}")
    assert made({"verifier": "json", "schema": str(tmp_path / "s.json")}).name != first.name
    slow = made({"verifier": "json", "schema": {"pattern": "^(a+)+$"}, "timeout_s": 0.5})
    assert "not settled within 0.5 s" in verdict(slow, None, '"' + "a" * 40 + '!"').reason
    elsewhere = made({"verifier": "json", "schema": {"$ref": "http://127.0.0.1:9/x"}})
    assert verdict(elsewhere, None, "1").outcome == "error"  # never fetched
    for wrong in ({"type": "thing"}, str(tmp_path / "none.json"), str(tmp_path)):
        with pytest.raises(SettingsError, match="schema"):
            made({"verifier": "json", "schema": wrong})


def test_a_pattern_that_takes_years_costs_its_time_limit() -> None:
    verifier = made({"verifier": "regex", "pattern": "(a+)+b", "timeout_s": 0.5})
    assert verdict(verifier, None, "aaab")
    assert verdict(verifier, None, "xaaab").outcome == "fail"
    assert "not settled within 0.5 s" in verdict(verifier, None, "a" * 40).reason
    assert verdict(verifier, None, "aaab")
    assert verdict({"verifier": "regex", "match": "search", "ignore_case": True}, "b+", "aBc")


# ---------------------------------------------------------------- mathematics


@math_verify
def test_mathematics_in_many_threads() -> None:  # math-verify's issues 42 and 50: in threads, it raises or calls equal things different
    verifier = made("math")
    cases = [
        ("4", r"so $x = 4$", "pass"), (r"\frac{1}{2}", "0.5", "pass"), (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", "pass"), ("x+1", "1 + x", "pass"),
        (r"\{1,2\}", r"$\{2,1\}$", "pass"), ("4", "4 apples", "pass"), ("4", "4 or 5", "fail"), ("4", r"\boxed{4}, no, \boxed{5}", "fail"),
        ("4", "", "fail"), ("4", "I would rather talk about the weather.", "fail"), (r"\frac{1}{2}", r"\frac{1}{3}", "fail"), ("4", "٤", "fail"),
        ("4", "9" * 5000, "fail"), ("4", "\x00", "fail"), ("4", r"\frac{" * 300 + "1" + "}{2}" * 300, "fail"), ("4", r"\frac{1}{0}", "fail"),
        (["4", "5"], "5", "pass"), (4, "4.0", "pass"),
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda case: verdict(verifier, case[0], case[1]), cases))
    wrong = [(case[:2], one.outcome, one.reason) for case, one in zip(cases, said, strict=True) if one.outcome != case[2]]
    assert wrong == []


@math_verify
@pytest.mark.parametrize(
    "answer", [r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}", "$9^{9^{9}}$", r"$(10^{10})!$"]
)
def test_mathematics_that_hangs_is_an_error_and_nothing_else(answer: str) -> None:  # math-verify's issue 65
    verifier = made({"verifier": "math", "timeout_s": 1.0})
    assert verdict(verifier, "4", "4")
    assert verdict(verifier, "4", answer).outcome in ("error", "fail")
    assert verdict(verifier, "4", "4")
    assert verdict(verifier, answer, "4").outcome in ("error", "fail")


@math_verify
def test_a_reference_that_is_no_mathematics_is_an_error() -> None:
    assert "no mathematics" in verdict("math", "?!", "4").reason
    assert "math-0." not in made({"verifier": "math", "tail": 100}).name  # a digest, of the library's version too
    assert made("math").name != made({"verifier": "math", "tail": 100}).name


# ---------------------------------------------------------------- SQL

SCRIPT = "CREATE TABLE t(a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'y'), (3, NULL);"
OTHER = SCRIPT + " INSERT INTO t VALUES (4, 'z');"


def sql(query: str = "SELECT a, b FROM t", **more: Any) -> dict[str, Any]:
    return {"query": query, "scripts": [SCRIPT, OTHER], **more}


@pytest.mark.parametrize(
    ("query", "right", "wrong"),
    [
        (
            "SELECT a, b FROM t",
            ["select a AS n, b from t order by a desc;", "SELECT a*1.0, b FROM t",
             "```sql\nSELECT * FROM t\n```", "WITH x AS (SELECT * FROM t) SELECT * FROM x"],
            ["SELECT DISTINCT a, b FROM t", "SELECT b, a FROM t", "SELECT a FROM t", "SELECT a, b FROM t LIMIT 4", "SELECT a, b FROM t; SELECT 1", "",
             "SELECT a || '', b FROM t", "I do not know", "\x00", "SELECT a, b FROM t WHERE", "-- nothing", "(" * 3000],
        ),
        ("SELECT a FROM t ORDER BY a", ["SELECT a FROM t ORDER BY a"], ["SELECT a FROM t ORDER BY a DESC"]),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a) -- ORDER BY", ["SELECT a FROM t ORDER BY a DESC"], ["SELECT 1"]),
        ("SELECT count(*) FROM t", ["SELECT sum(1) FROM t"], ["SELECT 4", "SELECT 5", "SELECT '4'"]),
        ("SELECT 0.1 + 0.2", ["SELECT 0.3"], ["SELECT 0.3000001", "SELECT '0.3'"]),
    ],
)  # fmt: skip
def test_sql(query: str, right: list[str], wrong: list[str]) -> None:
    verifier = made("sql")
    assert [(answer, why.reason) for answer in right if not (why := verdict(verifier, sql(query), answer))] == []
    assert [answer for answer in wrong if verdict(verifier, sql(query), answer).outcome != "fail"] == []


def test_sql_can_only_select(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    with sqlite3.connect(path) as database:
        database.executescript(SCRIPT)
    before = path.read_bytes()
    for attack in [
        "DELETE FROM t RETURNING a, b", "DROP TABLE t", "INSERT INTO t VALUES (9, 'w') RETURNING a, b", f"ATTACH '{tmp_path}/new.db' AS n",
        "PRAGMA writable_schema = 1", "PRAGMA table_info(t)", "VACUUM", f"VACUUM INTO '{tmp_path}/new.db'", "SELECT load_extension('x')",
        "SELECT random(), 1", "SELECT writefile('x', 'y'), 1", "CREATE TEMP TABLE x(a)", "BEGIN", "SELECT * FROM pragma_database_list",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i), 1 FROM n",
        "SELECT replace(hex(zeroblob(1e9)), '00', 'xx'), 1", "SELECT printf('%.*c', 1000000000, 'x'), 1",
        "SELECT group_concat(x.b), 1 FROM t x, t y, t z, t u, t v, t w, t r, t s, t q, t p, t o, t n, t m",
    ]:  # fmt: skip
        verifier = made({"verifier": "sql", "databases": [str(path)], "max_steps": 300_000})
        said = verdict(verifier, "SELECT a, b FROM t", attack)
        assert said.outcome == "fail", (attack, said)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["d.db"]
    assert verdict(verifier, "SELECT a, b FROM t", "SELECT a, b FROM t")
    assert verdict({"verifier": "sql", "columns": "named"}, sql(), "SELECT a, b AS c FROM t").reason == "other columns"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (sql("SELECT a FROM t WHERE a > 9"), "no row on any database"),
        (sql("SELECT c FROM t"), "no such column"),
        (sql(scripts=["nonsense"]), "cannot be opened"),
    ],
)
def test_what_a_wrong_reference_gives_is_an_error(reference: Any, why: str) -> None:
    said = verdict("sql", reference, "SELECT 1 WHERE 0")
    assert said.outcome == "error" and why in said.reason


# ---------------------------------------------------------------- functions in a process of their own

HOSTILE = """
import os, signal, sys, time
def prints(answer, reference):
    for _ in range(3000): os.write(1, b"x" * 2**20); sys.stdout.write("y" * 2**10)
    return answer == reference
def forks(answer, reference):
    if os.fork() == 0: time.sleep(600)
    return answer == reference
def forks_and_both_answer(answer, reference):
    return os.fork() == 0
def ignores(answer, reference):
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM): signal.signal(one, signal.SIG_IGN)
    while True: time.sleep(1)
def eats(answer, reference): return len(bytearray(8 * 10**9)) > 0
def dies(answer, reference): os.kill(os.getpid(), signal.SIGKILL)
def says_nan(answer, reference): return float("nan")
def says_text(answer, reference): return "pass"
def powers(answer, reference): return 9 ** 9 ** 9 > 1
def whole(task, trajectory): return trajectory.messages[-1].content == task.reference
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    yield str(tmp_path / "hostile.py")


@pytest.mark.parametrize(
    ("function", "says", "why"),
    [
        ("prints", "pass", ""), ("forks", "pass", ""), ("forks_and_both_answer", "fail", ""), ("ignores", "error", "not settled within 3 s"),
        ("eats", "error", "memory"), ("dies", "error", "SIGKILL"), ("says_nan", "error", "NaN"), ("says_text", "error", "returned str"),
        ("powers", "error", "not settled"), ("whole", "pass", ""),
    ],
)  # fmt: skip
def test_a_hostile_function_harms_nobody(hostile: str, function: str, says: str, why: str) -> None:
    settings = {"verifier": "function", "function": f"{hostile}:{function}", "isolated": True, "timeout_s": 3.0, "threshold": 0.5}
    verifier = made(settings)
    said = verdict(verifier, "4", "4")
    assert (said.outcome, why in said.reason) == (says, True), said
    assert verdict({**settings, "function": f"{hostile}:whole"}, "4", "4")
    strangers = [one for child in psutil.Process().children() for one in child.children(recursive=True)]
    assert strangers == []


def test_a_worker_ends_with_its_owner() -> None:
    code = "from sharpen.verifiers.workers import pool; import os; print(pool().call('os:getpid', timeout_s=60), flush=True); os._exit(1)"
    worker = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout)
    wait_until(lambda: not runs(worker))


def test_a_worker_is_not_tired_of_what_its_owner_holds() -> None:
    ballast = bytearray(1 << 29)
    pool = Pool(1, memory_mb=512)
    try:
        assert len({pool.call("os:getpid", timeout_s=600) for _ in range(3)}) == 1
    finally:
        pool.close()
        del ballast


def workers() -> set[int]:
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            found |= {child.pid} if "sharpen.verifiers.worker" in child.cmdline() else set()
    return found


def test_many_verdicts_leave_nothing_behind() -> None:
    others, pool = workers(), Pool(2)  # the shared one has as many as there are cores
    try:
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(lambda n: pool.call("operator:add", n, 1, timeout_s=600), range(300))) == sum(range(1, 301))
        gc.collect()  # what other tests left would else be closed in between
        files = psutil.Process().num_fds()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                pool.call("time:sleep", 30, timeout_s=0.05)
        assert len(workers() - others) <= 2
        assert psutil.Process().num_fds() <= files
    finally:
        pool.close()


# ---------------------------------------------------------------- combinations


class Says:
    exact = False

    def __init__(self, outcome: str, cost: Any = "free") -> None:
        self.name, self.outcome, self.asked = f"{outcome}-{cost}", outcome, 0
        self.properties = Properties(needs="", cost=cost, gameable="", fails="", errors="")

    def problem(self, task: Task) -> str:
        return ""

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        self.asked += 1
        if self.outcome == "raise":
            raise ValueError("broken")
        return Verdict(key=trajectory.key, outcome=self.outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("k", "outcomes", "says"),
    [
        (3, "pass pass pass", "pass"), (3, "pass error fail", "fail"), (3, "pass error pass", "error"), (3, "raise pass pass", "error"),
        (1, "fail error pass", "pass"), (1, "fail error fail", "error"), (1, "fail fail fail", "fail"), (1, "raise fail fail", "error"),
        (2, "pass fail pass", "pass"), (2, "pass fail error", "error"), (2, "error error pass", "error"), (2, "fail error fail", "fail"),
    ],
)  # fmt: skip
def test_an_error_is_never_a_fail_in_a_combination(k: int, outcomes: str, says: str) -> None:
    members = tuple(map(Says, outcomes.split()))
    assert judge(task("4"), tried("4"), Combination("k_of", members, k)).outcome == says
    assert judge(task("4"), tried("4"), Combination("k_of", members[::-1], k)).outcome == says


def test_the_dear_are_asked_only_where_the_cheap_do_not_settle_it() -> None:
    dear, cheap = Says("pass", "money"), Says("fail", "free")
    assert judge(task("4"), tried("4"), Combination("all", (dear, cheap), 2)).outcome == "fail"
    assert (dear.asked, cheap.asked) == (0, 1)
    assert judge(task("4"), tried("4"), Combination("any", (dear, cheap), 1)).outcome == "pass"
    assert (dear.asked, cheap.asked) == (1, 2)


@pytest.mark.parametrize(
    ("k", "open_", "bare", "declared", "in_part"),
    [
        (1, 1, 0, True, False),  # any: a cheat needs nobody else
        (3, 2, 0, False, True),  # all: the third still has to be passed by an answer that is right
        (3, 3, 0, True, False),
        (2, 1, 0, False, True),
        (2, 2, 0, True, False),
        (3, 1, 1, True, False),  # what runs with one's rights reaches the other members
        (1, 0, 0, False, False),
    ],
)
def test_a_combination_is_gameable_where_cheats_need_no_other_members_pass(
    k: int, open_: int, bare: int, declared: bool, in_part: bool
) -> None:
    members = []
    for n in range(3):
        member = Says("pass")
        member.name = f"m{n}"
        member.properties = replace(member.properties, declared="shared" if n < open_ else "", sandboxed=n >= bare)
        members.append(member)
    made_ = Combination("k_of", tuple(members), k).properties
    assert (bool(made_.declared), bool(made_.in_part), made_.sandboxed) == (declared, in_part, not bare)
    outer = Combination("all", (Combination("k_of", tuple(members), k), Says("pass")), 2).properties
    assert bool(outer.in_part) == (bool(open_) and not bare) and bool(outer.declared) == bool(bare)
    assert Combination("any", (Says("pass"), Says("fail")), 1).properties.sandboxed is None


# ---------------------------------------------------------------- every kind

REFERENCES: dict[str, tuple[Any, Any]] = {
    "exact": ("4", "5"), "numeric": ("4", "5"), "choice": ("A", "B"), "json": ('{"a": 4}', '{"a": 5}'), "regex": ("four+", "five+"),
    "math": ("4", "5"), "sql": ("SELECT a FROM t", "SELECT b FROM t"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=math_verify if kind == "math" else ()) for kind in REFERENCES])
def test_every_kind_is_held_to_what_plugins_are(kind: str, tmp_path: Path) -> None:
    (tmp_path / "s.sql").write_text(SCRIPT)
    verifier = made({"verifier": "sql", "scripts": [str(tmp_path / "s.sql")]} if kind == "sql" else kind)
    tasks = [replace(task(reference, f"t{n}"), split="train") for n, reference in enumerate(REFERENCES[kind])]
    assert [verifier.problem(one) for one in tasks] == ["", ""]
    if kind == "regex":
        tasks = [replace(one, params={"gold": one.reference.rstrip("+")}) for one in tasks]
    check_verifier(verifier, tasks, examples=5)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=math_verify if kind == "math" else ()) for kind in REFERENCES])
@pytest.mark.parametrize("reference", [None, "", " ", [], {}, True, [1, None], {"query": 3}, float("nan"), b"4"])
def test_a_reference_of_the_wrong_type_is_told_in_one_line(kind: str, reference: Any) -> None:
    verifier = made(kind)
    problem = verifier.problem(task(reference))
    if kind == "json" and (reference in ([], {}, True, [1, None]) or reference == {"query": 3}):
        assert problem == ""
        return
    if kind == "regex" and reference == " ":
        assert problem == ""
        return
    assert "; " in problem and "\n" not in problem  # what is wrong; what to do
    assert judge(task(reference), tried("4"), verifier).outcome in ("error", "fail")
    assert not judge(task(reference), tried(""), verifier)


@pytest.mark.parametrize("kind", ["exact", "numeric", "choice", "json"])
def test_an_answer_of_ten_megabytes(kind: str) -> None:
    verifier = made({"verifier": kind, "ignore": ["case", "space", "punctuation"]} if kind == "exact" else kind)
    for unit in ("4 ", "[", "\\boxed{"):
        started = time.process_time()
        assert verdict(verifier, "A" if kind == "choice" else "7", unit * (10_000_000 // len(unit))).outcome == "fail"
        assert time.process_time() - started < 20


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("mth", "did you mean 'math'"),
        ({"verifier": "numerc"}, "did you mean 'numeric'"),
        ({"verifier": "numeric", "tolerence": 1}, "did you mean 'tolerance'"),
        ({"verifier": "numeric", "tolerance": -1}, "tasks.verifier.tolerance"),
        ({"verifier": "numeric", "tolerance": float("inf")}, "every number is within it"),
        ({"verifier": "numeric", "tolerance": float("nan")}, "tasks.verifier"),
        ({"verifier": "exact", "ignore": ["cases"]}, "did you mean 'case'"),
        ({"verifier": "exact", "after": "("}, "no regular expression"),
        ({"verifier": "regex", "pattern": "a*"}, "an empty answer matches"),
        ({"verifier": "choice", "options": 1}, "options"),
        ({"verifier": "all", "of": ["math"]}, "two or more"),
        ({"verifier": "k_of", "k": 3, "of": ["exact", "numeric"]}, "lower k"),
        ({"verifier": "any", "of": ["exact", {"verifier": "numeric", "tol": 1}]}, r"tasks.verifier.of\[1\].tol"),
        ({"verifier": "any", "of": ["exact", "numerc"]}, "did you mean 'numeric'"),
        ({"verifier": "sql", "databases": ["/nowhere.db"]}, "cannot be read"),
        ("k_of", "k"),
        ("nowhere.py:verify", "cannot be imported"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(given: Any, why: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "2 + 2 = ?", "reference": "4", "split": "train"}\n')
    with pytest.raises(SettingsError, match=why) as caught:
        load_tasks(convert({"name": "x", "tasks": {"source": "jsonl", "path": str(tmp_path / "t.jsonl"), "verifier": given}}, "x").tasks)
    assert "\n" not in str(caught.value)


def test_names_follow_settings_and_old_yaml_works(tmp_path: Path) -> None:
    (tmp_path / "v.py").write_text("def score(answer, reference):\n    return 0.7\n")
    (tmp_path / "t.jsonl").write_text('{"prompt": "2 + 2 = ?", "reference": "4", "split": "train"}\n')

    def name(given: Any, **beside: Any) -> str:
        tasks = {"source": "jsonl", "path": str(tmp_path / "t.jsonl"), "verifier": given, **beside}
        verifier = load_tasks(convert({"name": "x", "tasks": tasks}, "x").tasks).verifier
        assert verifier is not None and verifier.exact is beside.get("exact", verifier.exact)
        return verifier.name

    old = f"{tmp_path / 'v.py'}:score"
    names = [
        name("exact"), name("numeric"), name({"verifier": "numeric", "tolerance": 0.1}), name({"verifier": "numeric", "tolerance": 0.2}), name(old),
        name(old, threshold=0.5), name({"verifier": "all", "of": ["exact", "numeric"]}), name({"verifier": "any", "of": ["exact", "numeric"]}),
        name({"verifier": "all", "of": ["exact", {"verifier": "numeric", "tolerance": 0.1}]}), name("environment"),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert names[:2] == ["exact", "numeric"] and names[4] == old
    assert name("numeric", exact=True) == "numeric" and name({"verifier": "numeric", "exact": True}) == "numeric"
    assert name(old, exact=True, threshold=0.5) == name({"verifier": "function", "function": old, "threshold": 0.5}) == names[5]
    kept = [
        to_yaml(convert({"name": "x", "tasks": {"source": "jsonl", "path": "t", "verifier": one}}, "x")) for one in ("environment", old)
    ]
    assert "  verifier: environment\n" in kept[0] and f"  verifier: {old}\n" in kept[1]  # runs of older versions go on
    with pytest.raises(SettingsError, match="the verifier numeric has none"):
        name("numeric", threshold=0.5)
    with pytest.raises(SettingsError, match="take one out"):
        name({"verifier": "function", "function": old, "threshold": 0.5}, threshold=0.6)


@pytest.mark.parametrize(
    ("row", "given", "why"),
    [
        ({"reference": "four"}, "numeric", r":2: task '\w+' has the reference 'four'"),
        ({}, "exact", r":2: task '\w+' has no reference"),
        ({"reference": "E"}, "choice", "set options"),
        ({"reference": "SELECT 1"}, "sql", "names no database"),
        ({"reference": {"query": "SELECT 1", "databases": ["/none.db"]}}, "sql", "which is no file here"),
    ],
)
def test_a_task_that_cannot_be_judged_is_told_when_it_is_read(row: dict[str, Any], given: Any, why: str, tmp_path: Path) -> None:
    good = {"numeric": 4, "exact": "4", "choice": "A", "sql": {"query": "SELECT 1", "scripts": [SCRIPT]}}[given]
    rows = [{"prompt": "a?", "split": "train", "reference": good}, {"prompt": "b?", "split": "train", **row}]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    with pytest.raises(TaskError, match=why) as caught:
        load_tasks(convert({"name": "x", "tasks": {"source": "jsonl", "path": str(tmp_path / "t.jsonl"), "verifier": given}}, "x").tasks)
    assert "\n" not in str(caught.value)
