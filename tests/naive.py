"""Graders that make the mistakes that graders make, and children that nothing limits: where attacks are shown to be attacks.

What runs here runs on the machine itself, so each child has a rope: it may take more than the sandbox would let it, and not much more. Whatever it leaves
is found by a word in its environment and killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from attacks import HARMS, TEST
from sharpen.sandbox.box import Limits

Outcome = Literal["pass", "fail", "broken"]
LIMITS = Limits(wall_s=3, cpu_s=3, memory_mb=256, processes=6, disk_mb=8, files=1024)  # of the sandbox that attacks are tried in
OUTPUT_MB = 1
WAIT_S = 120.0  # for what must happen; nothing depends on how long it takes
ANSWERS = {"(2, 3)": 5, "(-1, 1)": 0, "([1], [2])": [1, 2]}
PYTHON = [sys.executable, "-s", "-S", "-E"]


class Naive:
    """A folder with what graders leave beside the code (``answers.json``, ``tmp``), which every try finds as the try before left it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.word = folder, port, uuid.uuid4().hex
        (folder / "tmp").mkdir()
        (folder / "answers.json").write_text(repr(ANSWERS))

    def graded(self, setup: str, code: str, test: str = TEST) -> Outcome:
        code = code.replace("/tmp", str(self.folder / "tmp")).replace("PORT", str(self.port))
        try:
            return GRADERS[setup](self, code, test)
        finally:
            self.end()

    def harmed(self, harm: str, code: str, test: str = TEST) -> bool:
        """Whether the code, called once by its test and on its rope, does ``harm``."""
        code = code.replace("/tmp", str(self.folder / "tmp"))
        (self.folder / "forks").touch()
        program = ROPE.format(count=str(self.folder / "forks"), most=2 if harm == "memory of many" else 60) + ROPES.get(harm, "")
        child = self.start(
            "-c", f"{program}\n{code}\n{test}\ncheck(add)\n", stdout=subprocess.PIPE if harm == "output" else subprocess.DEVNULL
        )
        try:
            return DONE[harm](self, child)
        finally:
            self.end()
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()

    def start(self, *arguments: str, stdout: int = subprocess.DEVNULL, python: list[str] = PYTHON) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ["PATH"], "NAIVE": self.word, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.Popen(
            [*python, *arguments], cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL
        )

    def run(self, *arguments: str, python: list[str] = PYTHON) -> int:
        child = self.start(*arguments, python=python)
        try:
            return child.wait(WAIT_S)
        finally:
            child.kill()
            child.wait()

    def left(self) -> list[int]:
        """Every process that is there of those that were started here and of all that they started."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"NAIVE={self.word}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def end(self) -> None:
        while pids := self.left():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """The port of a server on the loopback that answers what ``add`` is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    with server.accept()[0] as asked:
                        asked.sendall(repr(ANSWERS.get(asked.recv(99).decode())).encode())
                except OSError:  # closed: the end
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def happens(what: Callable[[], bool]) -> bool:
    """Wait for it; False where it does not come."""
    until = time.monotonic() + WAIT_S
    while not (found := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


# ---------------------------------------------------------------- graders


def said(status: int) -> Outcome:
    return "pass" if status == 0 else "fail" if status == 1 else "broken"


def program(naive: Naive, code: str, test: str) -> Outcome:
    return said(naive.run("-c", f"{code}\n{test}\ncheck(add)\n"))


def after(naive: Naive, code: str, test: str) -> Outcome:
    blocks = re.findall(r"```python\n(.*?)```", code, re.DOTALL) or [code]
    return said(naive.run("-c", "\n".join([test, *blocks, "check(add)"])))


def caught(naive: Naive, code: str, test: str) -> Outcome:
    ending = "try:\n    check(add)\nexcept Exception as error:\n    print('the tests raised', error)\n    raise SystemExit(1)\n"
    return said(naive.run("-c", f"{code}\n{test}\n{ending}"))


def script(naive: Naive, code: str, test: str) -> Outcome:
    _files(naive, code, f"from solution import add\n{test}\ncheck(add)\n")
    naive.run("solution.py")
    return said(naive.run("test_solution.py"))


def with_pytest(naive: Naive, code: str, test: str) -> Outcome:
    _files(naive, code, f"from solution import add\n{test}\ndef test_add():\n    check(add)\n")
    naive.run("solution.py")
    return said(naive.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_solution.py", python=[sys.executable]))


def reward(naive: Naive, code: str, test: str) -> Outcome:
    _files(naive, code, f"from solution import add\n{test}\ncheck(add)\nopen('tmp/reward.txt', 'w').write('1')\n")
    naive.run("solution.py")
    naive.run("test_solution.py")
    return "pass" if _rewarded(naive) else "fail"


def reward_later(naive: Naive, code: str, test: str) -> Outcome:
    passed = script(naive, code, test) == "pass"
    (naive.folder / "tmp/reward.txt").write_text(str(int(passed)))
    found = []
    happens(lambda: found.append(_rewarded(naive)) or found[-1] or not naive.left())  # type: ignore[func-returns-value]
    return "pass" if found[-1] else "fail"


def _rewarded(naive: Naive) -> bool:
    path = naive.folder / "tmp/reward.txt"
    return path.exists() and path.read_text() == "1"


def _files(naive: Naive, code: str, test: str) -> None:
    (naive.folder / "solution.py").write_text(code)
    (naive.folder / "test_solution.py").write_text(test)


# A grader and its worker, which share a pipe that is the worker's file 3. Signals of the worker reach the grader only.
WORKER = """
import json, os, pickle, resource, struct, sys
kind, code, test, answers = sys.argv[1:]
there, here = os.pipe()
grader = os.getpid()
if not os.fork():
    os.dup2(here, 3)
    if here != 3: os.close(here)
    send = os.kill
    os.kill = lambda pid, number: send(pid, number) if pid == grader else None
    def tell(body):
        body = struct.pack("<I", len(body)) + body
        while body: body = body[os.write(3, body):]
    space = {}
    exec(code, space)
    if kind == "pipe":
        exec(test, space)
        try:
            space["check"](space["add"])
            outcome = "pass"
        except Exception:
            outcome = "fail"
        tell(json.dumps({"outcome": outcome}).encode())
    for case in eval(answers) if kind != "pipe" else ():
        given = space["add"](*eval(case))
        tell(pickle.dumps(given) if kind == "pickle" else json.dumps(given).encode())
    os._exit(0)
os.close(here)
def hear():
    size = struct.unpack("<I", os.read(there, 4))[0]
    body, got = bytearray(size), 0
    while got < size:
        part = os.read(there, size - got)
        if not part: raise EOFError
        body[got:got + len(part)] = part
        got += len(part)
    return pickle.loads(body) if kind == "pickle" else json.loads(body)
try:
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (32 << 20), held + (32 << 20)))  # the rope, for what the worker makes it hold
    passed = hear()["outcome"] == "pass" if kind == "pipe" else all(hear() == wanted for wanted in eval(answers).values())
    open("verdict.json", "w").write(json.dumps(passed))
except BaseException as error:
    if isinstance(error, SystemExit): raise
    os._exit(2)
sys.exit(0 if passed else 1)
"""


def worker(kind: str) -> Callable[[Naive, str, str], Outcome]:
    return lambda naive, code, test: said(naive.run("-c", WORKER, kind, code, test, repr(ANSWERS)))


GRADERS: dict[str, Callable[[Naive, str, str], Outcome]] = {
    "program": program,
    "after": after,
    "caught": caught,
    "script": script,
    "pytest": with_pytest,
    "reward": reward,
    "reward, read later": reward_later,
    **{kind: worker(kind) for kind in ("pipe", "json", "pickle")},
}


# ---------------------------------------------------------------- harm

# Every fork is a byte in a file; whoever finds it full waits, to be found and killed.
ROPE = """
import os, resource, threading, time
def _rope(real=os.fork, size=os.path.getsize, opened=os.open, write=os.write, close=os.close, sleep=time.sleep):
    if size({count!r}) >= {most}:
        sleep(600)
        os._exit(0)
    file = opened({count!r}, os.O_WRONLY | os.O_APPEND)
    write(file, b".")
    close(file)
    return real()
os.fork = _rope
"""
MIB = 1 << 20
ROPES = {
    "memory": f"resource.setrlimit(resource.RLIMIT_AS, ({400 * MIB}, {400 * MIB}))",
    "disk": f"resource.setrlimit(resource.RLIMIT_FSIZE, ({12 * MIB}, {12 * MIB}))",
    "time": f"resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nresource.setrlimit(resource.RLIMIT_AS, ({2048 * MIB}, {2048 * MIB}))",
    "threads": """
def _start(self, real=threading.Thread.start, sleep=time.sleep):
    while threading.active_count() > 60: sleep(600)
    real(self)
threading.Thread.start = _start
""",
    "files": """
import builtins
def _open(*given, real=open, made=[]):
    if len(made) >= 1500: raise OSError("the rope")
    made.append(0)
    return real(*given)
builtins.open = _open
""",
}


def _status(pid: int, name: str) -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(line.split(":")[1].split()[0] for line in lines if line.startswith(f"{name}:"))
    return "0"


def _output(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    assert child.stdout is not None
    return len(child.stdout.read((OUTPUT_MB + 3) * MIB)) > OUTPUT_MB * MIB and child.poll() is None


def _zombies(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    def count() -> int:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        return sum(_status(int(pid), "State") == "Z" for pid in children)

    return happens(lambda: count() > LIMITS.processes)


def _memory(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    _, _, usage = os.wait4(child.pid, 0)  # the rope ends it
    child.returncode = 0
    return usage.ru_maxrss * 1024 > LIMITS.memory_mb * MIB


def _memory_of_many(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    def held() -> list[int]:
        return [int(_status(pid, "VmRSS")) * 1024 for pid in naive.left()]

    return happens(lambda: sum(held()) > LIMITS.memory_mb * MIB and len(held()) > 1)


def _disk(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    child.wait(WAIT_S)
    return (naive.folder / "tmp/full").stat().st_size > LIMITS.disk_mb * MIB


def _files_made(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    child.wait(WAIT_S)
    return len([*(naive.folder / "tmp").iterdir()]) > LIMITS.files


def _signals(naive: Naive, child: subprocess.Popen[bytes]) -> bool:
    if not happens(lambda: bool(int(_status(child.pid, "SigIgn"), 16) & 1 << 30)):  # of 31, the last that it sets
        return False
    child.send_signal(signal.SIGTERM)
    return child.poll() is None


DONE: dict[str, Callable[[Naive, subprocess.Popen[bytes]], bool]] = {
    "output": _output,
    "processes": lambda naive, child: happens(lambda: len(naive.left()) > 3 * LIMITS.processes),
    "zombies": _zombies,
    "threads": lambda naive, child: happens(lambda: int(_status(child.pid, "Threads")) > 3 * LIMITS.processes),
    "memory": _memory,
    "memory of many": _memory_of_many,
    "disk": _disk,
    "files": _files_made,
    "time": lambda naive, child: child.wait(WAIT_S) == -signal.SIGXCPU,
    "signals": _signals,
}
assert DONE.keys() == HARMS.keys()
