"""What runs in the boxes of the code verifier: the judged and its judge, each in a box of its own, joined by a socket. Standard library only.

The candidate's process gets calls and gives back outcomes; the tests run in the judge's process, where ``candidate(...)`` asks over the socket.
What comes back is plain data made anew (so no ``__eq__`` of the candidate's is ever asked): None, bool, int, float, complex, str, bytes, list, tuple,
dict, set, frozenset, range, Decimal, Fraction, date, datetime, time, timedelta, of subclasses the base's content; and exceptions, by name. Anything
else arrives as something that equals nothing and fails whoever uses it.
"""

from __future__ import annotations

import ast
import builtins
import datetime
import decimal
import fractions
import json
import os
import random
import socket
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

DEEPEST = 200
TEXTS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "bytes": (bytes, lambda v: bytes(v).hex(), bytes.fromhex),
    "complex": (complex, lambda v: complex(v).__repr__(), complex),
    "decimal": (decimal.Decimal, lambda v: str(v), decimal.Decimal),
    "fraction": (fractions.Fraction, lambda v: f"{v.numerator}/{v.denominator}", fractions.Fraction),
    "datetime": (datetime.datetime, lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda v: v.isoformat(), datetime.date.fromisoformat),
    "time": (datetime.time, lambda v: v.isoformat(), datetime.time.fromisoformat),
}
SERIES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class Odd(Exception):
    """Something that cannot be carried."""


def refuse(what: str) -> Any:
    raise Odd(what)


def mark(what: str) -> Any:
    return {"odd": what}


def pack(value: Any, odd: Callable[[str], Any] = refuse, deep: int = 0) -> Any:
    """``value`` as JSON can hold it; what cannot be carried is what ``odd`` makes of its type's name."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if deep >= DEEPEST:
        return odd("something nested too deep, or in itself")
    if isinstance(value, list):
        return [pack(item, odd, deep + 1) for item in list.__iter__(value)]
    for name, kind in SERIES.items():
        if isinstance(value, kind):
            return {name: [pack(item, odd, deep + 1) for item in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, odd, deep + 1), pack(item, odd, deep + 1)] for key, item in dict.items(value)]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, datetime.timedelta):
        return {"delta": [value.days, value.seconds, value.microseconds]}
    for name, (kind, write, _) in TEXTS.items():
        if isinstance(value, kind):
            return {name: write(value)}
    return odd(type(value).__name__)


def unpack(data: Any) -> Any:
    """What ``pack`` was given. ValueError, TypeError or RecursionError where ``data`` is none of its."""
    if isinstance(data, list):
        return [unpack(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((name, value),) = data.items()
    if name in SERIES:
        return SERIES[name](unpack(item) for item in value)
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in value}
    if name == "int":
        return int(value, 16)
    if name == "range":
        return range(*value)
    if name == "delta":
        return datetime.timedelta(*value)
    if name == "odd":
        return Carried(str(value))
    return TEXTS[name][2](value)


class Carried:
    """In the place of what cannot be carried: equal to nothing, and of no use."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def _useless(self, *args: Any) -> Any:
        raise TypeError(f"the code gave {self._what}, which cannot be carried to the tests")

    def __getattr__(self, name: str) -> Any:
        return self._useless()

    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __call__ = __int__ = __float__ = __index__ = __str__ = __repr__ = _useless
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __abs__ = __neg__ = __round__ = (
        _useless
    )


class Gone(BaseException):
    """The other side is gone, or said something that is none of the protocol."""


def tell(to: socket.socket, message: Any) -> None:
    body = json.dumps(message).encode()
    to.sendall(struct.pack("<I", len(body)) + body)


def hear(source: socket.socket, most: int) -> Any:
    size = struct.unpack("<I", _exactly(source, 4))[0]
    if size > most:
        raise Gone(f"its answer is {size} bytes, over the {most} allowed")
    try:
        return json.loads(_exactly(source, size))
    except (ValueError, RecursionError) as error:
        raise Gone(f"its answer cannot be read: {error}") from None


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = source.recv(min(count, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Gone("")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    except Exception:
        return type(error).__name__


# ---------------------------------------------------------------- the judged


def assemble(prompt: str, answer: str, whole: bool) -> str:
    """The program: the answer after the prompt, which it continues, or, where it is ``whole``, after what else the prompt defines."""
    if not whole:
        return prompt + answer
    try:
        compile(prompt, "<prompt>", "exec", dont_inherit=True)
    except SyntaxError:
        return answer
    return f"{prompt}\n\n{answer}" if prompt else answer


def module(name: str) -> dict[str, Any]:
    made = types.ModuleType(name)
    sys.modules[name] = made
    return made.__dict__


def candidate(data: dict[str, Any], channel: int) -> None:
    """Load the answer, then do the calls that come over ``channel`` until it is closed. Nothing in here has to be trusted: it only gives outputs."""
    judge = socket.socket(fileno=channel)
    random.seed(0)
    found = module("solution")
    try:
        exec(compile(assemble(data["prompt"], data["answer"], data["whole"]), "<answer>", "exec", dont_inherit=True), found)
    except BaseException as error:
        tell(judge, {"broken": line(error)})
        return
    tell(judge, {"defined": [name for name, value in found.items() if callable(value) and not name.startswith("__")]})
    while True:
        try:
            asked = hear(judge, 1 << 30)
        except Gone:
            return
        args, kwargs = unpack(asked["args"]), unpack(asked["kwargs"])
        try:
            given = found[asked["name"]](*args, **kwargs)
        except BaseException as error:
            tell(judge, _raised(error))
            continue
        tell(judge, {"gave": _or_odd(given), "left": _or_odd(args) if data["shared"] else None})


def _or_odd(value: Any) -> Any:
    try:
        return pack(value, mark)
    except Exception as error:
        return mark(f"{type(value).__name__} ({line(error)})")


def _raised(error: BaseException) -> dict[str, Any]:
    known = next(kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    try:
        args = [_or_odd(arg) for arg in error.args]
    except Exception:
        args = []
    return {"raised": known, "args": args, "line": line(error)}


def program(data: dict[str, Any], given: int, output: int) -> None:
    """The answer as a program of its own: reads the file ``given``, writes to ``output``. Exit status 1 where it raises."""
    for fd, place in ((given, 0), (output, 1)):
        os.dup2(fd, place)
        os.close(fd)
    sys.stdin, sys.stdout = open(0, encoding="utf-8", errors="replace"), open(1, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.argv = ["solution.py"]
    random.seed(0)
    try:
        exec(compile(assemble(data["prompt"], data["answer"], True), "<answer>", "exec", dont_inherit=True), module("__main__"))
    finally:
        sys.stdout.flush()


# ---------------------------------------------------------------- the judge


class CandidateError(Exception):
    """The code raised something that Python itself does not define."""


class Asker:
    """The candidate as the tests see it: calls go over the socket and come back as plain data, or as an exception."""

    def __init__(self, channel: socket.socket, most: int, shared: bool) -> None:
        self.channel, self.most, self.shared, self.calls = channel, most, shared, 0
        self.over: BaseException | None = None  # why the tests' end is worth nothing, though they may have caught it

    def hear(self) -> Any:
        said = hear(self.channel, self.most)
        if not isinstance(said, dict):
            raise Gone("its answer is none")
        return said

    def ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            asked = {"name": name, "args": pack(list(args)), "kwargs": pack(kwargs)}
        except Odd as error:
            self.over = Uncarried(f"the tests give the code {error}, which cannot be carried to it; set judge: together")
            raise self.over from None
        self.calls += 1
        try:
            return self._answer(args, asked)
        except Gone as gone:
            self.over = self.over or gone
            raise

    def _answer(self, args: tuple[Any, ...], asked: dict[str, Any]) -> Any:
        try:
            tell(self.channel, asked)
        except OSError:
            raise Gone("") from None
        said = self.hear()
        try:
            if "raised" not in said:
                if self.shared:
                    _write_back(args, unpack(said["left"]))
                return unpack(said["gave"])
            raised = _exception(said)
        except Exception as broken:
            raise Gone(f"its answer cannot be read: {line(broken)}") from None
        raise raised

    def named(self, name: str) -> Callable[..., Any]:
        def candidate(*args: Any, **kwargs: Any) -> Any:
            return self.ask(name, args, kwargs)

        candidate.__name__ = candidate.__qualname__ = name
        return candidate


class Uncarried(BaseException):
    """The tests hand the code something that cannot be carried: theirs to mend."""


def _exception(said: dict[str, Any]) -> Exception:
    kind = getattr(builtins, str(said["raised"]), None)
    # the two that end a loop over map(candidate, ...) as if there were no more are not passed on, as no generator passes them on
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind in (Exception, StopIteration, StopAsyncIteration):
        return CandidateError(str(said["line"]))
    error: Exception = kind.__new__(kind)
    error.args = tuple(unpack(arg) for arg in said["args"])
    return error


def _write_back(args: tuple[Any, ...], left: Any) -> None:
    for old, new in zip(args, left, strict=True):
        if type(old) is not type(new) or not isinstance(old, list | dict | set):
            continue
        old.clear()
        (old.extend if isinstance(old, list) else old.update)(new)


def judge(data: dict[str, Any], channel: int, result: int) -> None:
    """Run the tests against the candidate on ``channel`` and write what came of it to ``result``, which the candidate has no part of.

    A pass is: the tests ended by themselves, and asked the candidate at least once. Where they break before they asked anything, it is their fault.
    """
    asker = Asker(socket.socket(fileno=channel), data["most"], data["shared"])
    random.seed(0)

    def say(outcome: str, reason: str = "") -> None:
        tell(socket.socket(fileno=result), {"outcome": outcome, "reason": reason[:500]})
        os._exit(0)

    try:
        try:
            said = asker.hear()
            if "broken" in said:
                say("fail", f"the code raised {said['broken']}")
            if not isinstance(said.get("defined"), list):
                raise Gone("its answer is none")
            defined = [name for name in said["defined"] if isinstance(name, str) and not name.startswith("__")]
            if data["entry"] and data["entry"] not in defined:
                say("fail", f"the code defines no {data['entry']}")
            run_tests(data, asker, defined)
            if asker.over is not None:
                raise asker.over
        except Uncarried as error:
            say("error", str(error))
        except Gone as error:
            say("gone", str(error))
        except AssertionError as error:
            say("fail", f"a test fails{': ' if str(error) else ''}{' '.join(str(error).split())[:200]}")
        except Broken as error:
            say("error", str(error))
        except BaseException as error:
            if asker.over is not None:
                say("error" if isinstance(asker.over, Uncarried) else "gone", str(asker.over))
            if not asker.calls and (lacking := _lacking(error, data["entry"])):
                say("fail", f"the code defines no {lacking}")
            blame = "fail" if asker.calls else "error"
            say(blame, f"the tests raised {line(error)}")
        say(*(("pass",) if asker.calls else ("error", "the tests never ask the code anything")))
    except BaseException as error:
        say("fail", f"the judge gave up: {line(error)}")


def _lacking(error: BaseException, entry: str) -> str:
    """What the tests want of the code by name and it does not define, "" where ``error`` is the tests' own. Without an entry point, any unknown name."""
    if isinstance(error, ImportError) and error.name == "solution":
        return "what the tests import"
    if isinstance(error, AttributeError) and error.obj is sys.modules.get("solution"):
        return error.name or ""
    return error.name or "" if isinstance(error, NameError) and not entry else ""


class Broken(Exception):
    """The tests cannot be run, whatever the code is."""


def run_tests(data: dict[str, Any], asker: Asker, defined: list[str]) -> None:
    space = module("tests")
    solution = module("solution")
    try:
        tree = ast.parse(data["test"])
        if data["prompt"]:
            exec(compile(data["prompt"], "<prompt>", "exec", dont_inherit=True), space)
    except BaseException as error:
        raise Broken(f"the task's tests or prompt do not run: {line(error)}") from None
    # the tests' own names, and Python's, stay theirs: what the code defines is bound only where nothing else is meant
    for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {*defined}:
        if name == data["entry"] or not (name in space or hasattr(builtins, name)):
            space[name] = asker.named(name)
    for name in defined:
        solution[name] = asker.named(name)
    exec(compile(tree, "<tests>", "exec", dont_inherit=True), space)
    own = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        if not data["entry"]:
            raise Broken("the tests define check(candidate), but the reference names no entry_point")
        space["check"](asker.named(data["entry"]))
    for node in own:
        if node.args.args or node.decorator_list:
            raise Broken(f"{node.name} takes arguments or has a decorator, which only pytest understands; set judge: together")
        space[node.name]()
    if any(isinstance(node, ast.ClassDef) and node.name.startswith("Test") for node in tree.body):
        raise Broken("the tests are in a class, which only pytest understands; set judge: together")


def together(data: dict[str, Any], result: int) -> None:
    """Tests and candidate in one interpreter. Whoever wrote the candidate can make this say anything."""
    random.seed(0)
    said = {"outcome": "fail", "reason": "the tests did not end"}
    try:
        source, tree = assemble(data["prompt"], data["answer"], data["whole"]), ast.parse(data["test"])
        found = module("solution")
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test") for node in tree.body):
            said = _pytest(source, data["test"])
        else:
            exec(compile(source, "<answer>", "exec", dont_inherit=True), found)
            exec(compile(tree, "<tests>", "exec", dont_inherit=True), found)
            if data["entry"]:
                found["check"](found[data["entry"]])
            said = {"outcome": "pass", "reason": ""}
    except BaseException as error:
        said = {"outcome": "fail", "reason": line(error)}
    tell(socket.socket(fileno=result), said)


def _pytest(source: str, tests: str) -> dict[str, str]:
    try:
        import pytest
    except ImportError:
        return {"outcome": "error", "reason": "these tests need pytest: install it beside sharpen and set packages: true"}
    for name, text in (("solution.py", source), ("test_solution.py", tests)):
        with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
    sys.modules.pop("solution")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    counts: dict[str, int] = {}

    class Counter:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] = counts.get(report.outcome, 0) + 1

    status = pytest.main(["-q", "-p", "no:cacheprovider", "test_solution.py"], plugins=[Counter()])
    if status == 0 and set(counts) == {"passed"}:
        return {"outcome": "pass", "reason": ""}
    return {
        "outcome": "fail",
        "reason": ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or f"pytest ended with {status}",
    }
