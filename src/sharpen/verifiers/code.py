"""Code judged by unit tests, in the sandbox: the code in one box, its tests in another, the verdict out of reach of both."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import threading
from pathlib import Path
from typing import Any, Literal

import msgspec

from sharpen.errors import SettingsError, TaskError, nearest
from sharpen.records import Record, Task, Trajectory, Verdict
from sharpen.sandbox.box import Box, Boxes, Ended, Kind, Limits, unnamed
from sharpen.verifiers.base import Common, Properties, name_of
from sharpen.verifiers.function import answer_of


class Code(Common, frozen=True, kw_only=True, tag_field="verifier", tag="code"):
    """How code is judged; ``CodeVerifier`` says what a task's reference holds.

    ``timeout_s`` bounds wall time and CPU time of the code of one task (of one case, where it reads standard input), the other limits are those of
    ``sandbox.box.Limits``; ``output_mb`` MiB bounds what it may print, or give back from a call.

    ``judge`` is ``apart``: the tests run where the code cannot reach them, and only plain data comes back. ``together`` runs both in one
    interpreter: what cannot be carried (functions, objects, arrays, pytest's fixtures) works, and code that sets out to pass, passes: it is declared
    gameable, and the audit says so. ``arguments`` are ``copied``; where tests look at what the code changed in place, ``shared`` writes that back
    (lists, dicts, sets).

    ``answer``: ``fenced`` takes the last fenced Python block that defines what is asked for, and the whole answer where there is no block;
    ``whole`` takes it as it is. ``packages`` lets code and tests import what is installed beside sharpen.
    ``sandbox: none-i-trust-this-code`` runs it as an ordinary process, with your files, your network and your rights.
    """

    timeout_s: float = 10.0
    memory_mb: float = 512.0
    processes: int = 16
    disk_mb: float = 64.0
    output_mb: float = 16.0
    judge: Literal["apart", "together"] = "apart"
    arguments: Literal["copied", "shared"] = "copied"
    answer: Literal["fenced", "whole"] = "fenced"
    packages: bool = False
    sandbox: Kind = "bubblewrap"

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_mb", "processes", "disk_mb", "output_mb"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be over 0 and finite")
        if self.memory_mb < 64:
            raise SettingsError(f"memory_mb is {self.memory_mb:g}; Python alone takes 64")


class Tests(Record, frozen=True, kw_only=True):
    """Tests in Python: ``check(candidate)`` as human-eval has it, plain asserts, or ``test_...()`` functions."""

    test: str | tuple[str, ...]
    entry_point: str = ""
    prompt: str = ""


class Cases(Record, frozen=True, kw_only=True):
    """Pairs of inputs and outputs: texts for a program, or, with ``fn_name``, lists of arguments and what the function gives."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    fn_name: str = ""


TOGETHER = "code and tests share an interpreter (judge: together), so code that sets out to pass does"
# Processes of one user: the code can trace the tests' process, or write their verdict, or any file of sharpen's.
UNBOXED = "the code runs outside a sandbox, with the rights of the process that judges it, so code that sets out to pass does"
ASIDE = ("task_id", "canonical_solution", "text", "code", "difficulty")  # what rows of known sets hold beside
CALLS = """
import json
def _plain(value):
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
def check(candidate):
    for number, (given, wanted) in enumerate(json.loads({cases!r}), 1):
        assert _plain(candidate(*given)) == _plain(wanted), f"case {{number}}"
"""


CHEATS = {  # of code that is asked for ``name``
    "ends the process as if all had passed": """
import os
print("1 passed")
print("OK", flush=True)
def {name}(*given, **more):
    os._exit(0)
os._exit(0)
""",
    "leaves by sys.exit(0)": """
import sys
def {name}(*given, **more):
    sys.exit(0)
""",
    "gives what equals anything": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __bool__(self): return True
    def __hash__(self): return 0
    def __len__(self): return 1
    def __iter__(self): return iter((self,))
    def __getattr__(self, name): return self
    def __call__(self, *given, **more): return self
    def __getitem__(self, at): return self
    __sub__ = __rsub__ = __add__ = __radd__ = __mul__ = __mod__ = __getitem__
    def __abs__(self): return 0.0
    __float__ = __abs__
    def __int__(self): return 0
def {name}(*given, **more):
    return Same()
""",
    "reads what is wanted from the caller's frames": """
import sys
def {name}(*given, **more):
    frame = sys._getframe()
    while frame is not None:
        for place in ("wanted", "expected", "want", "result"):
            if place in frame.f_locals: return frame.f_locals[place]
        frame = frame.f_back
""",
    "overwrites the tests": """
import builtins, sys
def nothing(*given, **more): return None
def {name}(*given, **more):
    frame = sys._getframe()
    while frame is not None:
        for place in list(frame.f_globals):
            if place == "check" or place.startswith("test"): frame.f_globals[place] = nothing
        frame = frame.f_back
    raise SystemExit(0)
builtins.AssertionError = type("Quiet", (BaseException,), dict())
for module in list(sys.modules.values()):
    if hasattr(module, "check"): module.check = nothing
""",
}


class CodeVerifier:
    """Passes an answer whose code passes the unit tests in the task's reference, which is one of

    - ``{"test": ..., "entry_point": ..., "prompt": ...}``, human-eval's fields: Python source (or a list of it, MBPP's) that defines
      ``check(candidate)``, or ``test_...()`` functions, or only asserts; the name of the function asked for; code that the answer continues, or relies on
    - ``{"inputs": [...], "outputs": [...]}``: texts on standard input and what must be printed, up to space at the ends of lines and of the text
    - the same with ``"fn_name"``: lists of arguments, and what the function must give; tuples are lists, as in JSON

    A pass is: the tests came to their end by themselves, in the judge's process, and asked the code at least once. Whatever the code does otherwise (raise,
    exit, hang, flood, die) is a fail; tests that break before they asked anything are an error. Many threads may ask; as many verdicts as
    there are cores are made at once, since limits are in seconds. SandboxError where there is no sandbox.
    """

    properties = Properties(
        needs="reference: {test, entry_point, prompt}, or {inputs, outputs}, with fn_name for calls",
        deterministic=True,  # one hash seed, one random seed; what runs close to a limit may still fall on either side of it
        cost="cpu",
        gameable="`judge: apart`, by code that is right on these tests only; `together`, by any code that sets out to pass",
        fails="a test fails; the code raises, ends, or passes a limit",
        errors="the tests break before they ask the code; no sandbox, or it broke",
    )

    def __init__(self, settings: Code | None = None) -> None:
        self.settings = settings = settings or Code()
        self.name = name_of(settings)
        own = Limits(
            wall_s=settings.timeout_s,
            cpu_s=settings.timeout_s,
            memory_mb=settings.memory_mb,
            processes=settings.processes,
            disk_mb=settings.disk_mb,
        )
        # the tests wait for the code, so they get its time and a little of their own
        theirs = msgspec.structs.replace(own, wall_s=own.wall_s + 2, cpu_s=own.cpu_s + 2)
        text = Path(__file__).with_name("code_inside.py").read_text()
        self._judged = Boxes(text, own, settings.sandbox, packages=settings.packages)
        self._judges = Boxes(text, theirs, settings.sandbox, packages=settings.packages)
        self._most = int(settings.output_mb * 2**20)
        self.exact = settings.exact
        boxed = settings.sandbox == "bubblewrap"
        declared = TOGETHER if settings.judge == "together" else "" if boxed else UNBOXED
        self.properties = msgspec.structs.replace(type(self).properties, declared=declared, sandboxed=boxed)

    def close(self) -> None:
        self._judged.close()
        self._judges.close()

    def problem(self, task: Task) -> str:
        """Why ``task`` cannot be judged; "" where it can."""
        try:
            read_reference(task)
        except TaskError as error:
            return str(error)
        return ""

    def cheats(self, task: Task) -> dict[str, str]:
        """Programs that set out to pass and solve nothing."""
        reference = read_reference(task)
        name = reference.fn_name if isinstance(reference, Cases) else reference.entry_point
        programs = {kind: text.format(name=name or "solution") for kind, text in CHEATS.items()}
        return {kind: f"```python\n{text.strip()}\n```" for kind, text in programs.items()}

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        reference = read_reference(task)
        entry = reference.entry_point if isinstance(reference, Tests) else reference.fn_name
        answer = code_in(answer_of(trajectory), entry) if self.settings.answer == "fenced" else answer_of(trajectory)
        with _turns():
            if not answer.strip():
                outcome, reason = "fail", "the answer holds no code"
            elif isinstance(reference, Cases) and not entry:
                outcome, reason = self._program(answer, reference)
            else:
                outcome, reason = self._tests(answer, reference if isinstance(reference, Tests) else _calls(reference))
        if outcome == "error":
            raise TaskError(f"task {task.key!r}: {reason}")
        return Verdict(
            key=trajectory.key,
            outcome="pass" if outcome == "pass" else "fail",
            score=float(outcome == "pass"),
            reason=reason,
            verifier=self.name,
        )

    def _tests(self, answer: str, tests: Tests) -> tuple[str, str]:
        shared = {
            "prompt": tests.prompt,
            "entry": tests.entry_point,
            "test": tests.test if isinstance(tests.test, str) else "\n".join(tests.test),
            "shared": self.settings.arguments == "shared",
            "most": self._most,
        }
        code = {"prompt": tests.prompt, "answer": answer, "whole": not tests.entry_point or defines(answer, tests.entry_point)}
        if self.settings.judge == "together":
            with self._judges.lend() as box:
                return self._asked(box, "together", shared | code)
        here, there = socket.socketpair()
        with contextlib.closing(here), contextlib.closing(there), self._judged.lend() as judged, self._judges.lend() as judging:
            judged.start()
            judging.start()  # before the code's time begins
            judged.begin("candidate", code | {"shared": shared["shared"]}, [there.fileno()])
            there.close()  # else the judge would not see it end
            outcome, reason = self._asked(judging, "judge", shared, here)
            judged.stop()
            ended = judged.end()
        if outcome != "gone":
            return outcome, reason
        return "fail", reason or said(ended, self.settings)

    def _asked(self, box: Box, function: str, data: dict[str, Any], channel: socket.socket | None = None) -> tuple[str, str]:
        """What ``function`` in ``box`` says the outcome is."""
        ours, theirs = socket.socketpair()
        with contextlib.closing(ours), contextlib.closing(theirs):
            box.begin(function, data, [*([channel.fileno()] if channel else []), theirs.fileno()])
            theirs.close()
            if channel is not None:
                channel.close()
            ended = box.end()
            ours.setblocking(False)
            try:
                return _Said.read(ours)
            except (OSError, ValueError):
                return "fail", f"the tests did not end: {said(ended, self.settings)}"

    def _program(self, answer: str, cases: Cases) -> tuple[str, str]:
        for number, (given, wanted) in enumerate(zip(cases.inputs, cases.outputs, strict=True), 1):
            with unnamed(str(given).encode()) as stdin, unnamed(b"", self._most) as stdout, self._judged.lend() as box:
                ended = box.run("program", {"prompt": "", "answer": answer}, [stdin, stdout])
                printed = os.pread(stdout, min(self._most, os.lseek(stdout, 0, os.SEEK_CUR)), 0)
            if ended.how != "exit" or ended.code:
                return "fail", f"case {number}: {said(ended, self.settings)}"
            if _lines(printed.decode(errors="replace")) != _lines(str(wanted)):
                return "fail", f"case {number}: printed something else"
        return "pass", ""


class _Said(Record, frozen=True, kw_only=True):
    outcome: Literal["pass", "fail", "error", "gone"]
    reason: str

    @staticmethod
    def read(source: socket.socket) -> tuple[str, str]:
        got = msgspec.json.decode(source.recv(1 << 16)[4:], type=_Said)
        return got.outcome, got.reason


def said(ended: Ended, settings: Code) -> str:
    """How the code's process ended, in words."""
    match ended.how:
        case "time":
            return f"over the time limit of {settings.timeout_s:g} s"
        case "memory":
            return f"over the memory limit of {settings.memory_mb:g} MiB"
        case "processes":
            return f"over the limit of {settings.processes} processes"
        case "files":
            return "too many files"
    if ended.code == 137 and ended.cpu >= settings.timeout_s * 0.9:
        return f"over the CPU time limit of {settings.timeout_s:g} s"
    return f"the code ended by itself, with status {ended.code}" if ended.how == "exit" else "the code said something that is no answer"


def code_in(answer: str, entry: str = "") -> str:
    """The code in ``answer``: of its fenced blocks of Python (or of no language), the last that defines ``entry``, else the last; without any, all of it.

    A block that is never closed ends with the answer.
    """
    blocks: list[str] = [body for language, body in FENCE.findall(answer) if language.lower() in ("", "python", "py", "python3")]
    if not blocks:
        return "" if FENCE.search(answer) else answer
    return next((block for block in reversed(blocks) if entry and defines(block, entry)), blocks[-1])


FENCE = re.compile(r"^[ ]{0,3}```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ ]{0,3}```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def defines(code: str, name: str) -> bool:
    """Whether ``code`` defines ``name`` at its outermost level, as far as can be seen without reading it as Python: the answer is hostile."""
    return (
        re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*(?::[^=\n]*)?=", code, re.MULTILINE)
        is not None
    )


def read_reference(task: Task) -> Tests | Cases:
    """The tests in a task's reference. TaskError, one line, where there are none."""
    found = {"test": task.reference} if isinstance(task.reference, str) else task.reference
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key not in ASIDE}
    kind: type[Tests | Cases] = Cases if isinstance(found, dict) and "inputs" in found else Tests
    if isinstance(found, dict):
        known = [field.name for field in msgspec.structs.fields(kind)]
        for key in found:
            if key not in known:
                raise TaskError(f"task {task.key!r}: its reference has an unknown field {key!r}{nearest(str(key), known)}")
    try:
        reference = msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise TaskError(f"task {task.key!r}: its reference holds no tests for the code verifier: {error}") from None
    if isinstance(reference, Cases) and (not reference.inputs or len(reference.inputs) != len(reference.outputs)):
        raise TaskError(f"task {task.key!r}: its reference has {len(reference.inputs)} inputs and {len(reference.outputs)} outputs")
    return reference


def _calls(cases: Cases) -> Tests:
    pairs = [
        (list(given) if isinstance(given, list | tuple) else [given], wanted)
        for given, wanted in zip(cases.inputs, cases.outputs, strict=True)
    ]
    return Tests(test=CALLS.format(cases=json.dumps(pairs)), entry_point=cases.fn_name)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


@functools.cache
def _turn() -> threading.Semaphore:
    return threading.Semaphore(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _turns() -> threading.Semaphore:
    return _turn()
