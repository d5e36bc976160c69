"""Processes that judge and can be killed: for what may hang, eat memory or crash on an answer (mathematics, patterns, SQL, foreign functions).

``call`` runs a function of plain data in one of a few shared processes. Own code, where pebble's ``ProcessPool`` was looked at: multiprocessing
imports the user's script again in every worker, its kills ask first (three seconds with SIGTERM ignored) and leave a worker's own children
behind, and its limits are looked at every 0.1 s.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from sharpen.frames import Frames, write_frame
from sharpen.verifiers.worker import Done, Job, Limits, Load

START_S = 120.0  # for starting Python and importing, on a busy machine
PATIENCE = 6  # time limits by the clock for a worker that wants to compute but gets no processor on a busy machine
MEMORY_MB = 2048  # address space of a worker
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """At most ``most`` workers, started as they are needed, each with ``memory_mb`` of address space. Calls come from any thread.

    A worker that is not back in time, or dies, is killed with all that it started, and another takes its place; nobody else waits for that
    but for a free worker. One that once held much memory is replaced after its job, so memory does not grow.
    """

    def __init__(self, most: int = max(2, CPUS), memory_mb: int = MEMORY_MB) -> None:
        self._memory_mb = memory_mb
        self._turns = threading.BoundedSemaphore(most)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Any:
        """What ``module:function`` returns for ``arguments``, all plain data. The module is imported before the clock starts.

        TimeoutError after ``timeout_s`` seconds, of processor time where the machine is too busy to let it run (Linux; at most ``PATIENCE`` times
        as long by the clock), so that load makes no errors; RuntimeError, one line, where the function raises or its process dies.
        """
        module = function.partition(":")[0]
        with self._turns:
            worker, whole = self._take(module), False
            try:
                worker.load(module)
                done = worker.ask(Job(function, list(arguments), timeout_s), timeout_s)
                whole = not done.tired
            finally:  # also where the caller is interrupted: a worker in the middle of a job is of no use to the next
                self._give(worker, whole)
        if done.error:
            raise RuntimeError(done.error)
        return done.value

    def close(self) -> None:
        """Kill the workers that wait for work. Others follow when their job ends."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self, module: str) -> _Worker:
        with self._lock:
            while self._idle:
                at = next((at for at in reversed(range(len(self._idle))) if module in self._idle[at].modules), -1)
                worker = self._idle.pop(at)
                if worker.alive():
                    return worker
                worker.kill()
        return _Worker(self._memory_mb)

    def _give(self, worker: _Worker, whole: bool) -> None:
        if not whole:
            worker.kill()
            modules = worker.modules
            worker = _Worker(self._memory_mb)
            with contextlib.suppress(OSError):
                for module in modules:
                    worker.begin_loading(module)
        with self._lock:
            self._idle.append(worker)


class _Worker:
    """One process. Used by one thread at a time."""

    def __init__(self, memory_mb: int) -> None:
        # -P: a file in the user's folder must not be imported in place of a library
        command = [sys.executable, "-P", "-m", "sharpen.verifiers.worker"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # so that Ctrl-C does not reach it and a kill reaches its children
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._frames = Frames(self._stdout.fileno(), Done)
        self._poll = select.poll()
        self._poll.register(self._stdout.fileno(), select.POLLIN)
        self.modules: list[str] = []
        self._loading = 0
        self._arrived: list[Done] = []
        self._cpu_s = 0.0
        with contextlib.suppress(OSError):
            write_frame(self._stdin.fileno(), Limits(memory_mb))

    def alive(self) -> bool:
        return self._process.poll() is None

    def begin_loading(self, module: str) -> None:
        self.modules.append(module)
        write_frame(self._stdin.fileno(), Load(module))
        self._loading += 1

    def load(self, module: str) -> None:
        """Import ``module`` and wait until all that was to be imported is there. RuntimeError where it cannot be."""
        try:
            if module not in self.modules:
                self.begin_loading(module)
        except OSError:
            raise RuntimeError(self._died()) from None
        while self._loading:
            self._loading -= 1
            if error := self._reply(START_S, "no verifier process").error:
                self.modules.clear()  # not to be tried again in its successor
                raise RuntimeError(error)

    def ask(self, job: Job, timeout_s: float) -> Done:
        try:
            write_frame(self._stdin.fileno(), job)
        except OSError:
            raise RuntimeError(self._died()) from None
        return self._reply(timeout_s, "not settled")

    def kill(self) -> None:
        """Kill the process and all that it started and that is still in its session's group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _reply(self, seconds: float, what: str) -> Done:
        now = time.monotonic()
        deadline, latest = now + seconds, now + PATIENCE * seconds
        while not self._arrived:
            left = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(left * 1000):  # also where no time is left: it may be this process that was kept waiting
                deadline = min(latest, time.monotonic() + self._starved_of(seconds))
                if deadline <= time.monotonic() and not self._poll.poll(0):  # it may have answered while it was looked at
                    raise TimeoutError(f"{what} within {seconds:g} s")
                continue
            try:
                frames = self._frames.read()
            except (msgspec.DecodeError, OSError) as error:
                raise RuntimeError(f"the verifier process sent nonsense: {error}") from None
            if frames is None:
                died = self._died()
                if self._process.returncode == -signal.SIGXCPU:  # its own limit, which comes first where this process is kept waiting
                    raise TimeoutError(f"{what} within {seconds:g} s")
                raise RuntimeError(died)
            self._arrived += frames
        done = self._arrived.pop(0)
        self._cpu_s = done.cpu_s
        return done

    def _starved_of(self, seconds: float) -> float:
        """How much of ``seconds`` of processor time the worker has not had since its last word, though it wants to; 0 where it waits for something."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        had = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") - self._cpu_s
        missing = seconds - had
        return missing if fields[0] == "R" and missing > 0.05 * seconds else 0.0

    def _died(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        return f"the verifier process died ({signal.Signals(-code).name if code and code < 0 else f'exit status {code}'})"


_pools: dict[int, Pool] = {}
_pools_lock = threading.Lock()


def pool() -> Pool:
    """The pool that all verifiers of this process share; a forked child gets its own."""
    with _pools_lock:
        if os.getpid() not in _pools:
            _pools.clear()
            _pools[os.getpid()] = made = Pool()
            atexit.register(made.close)
        return _pools[os.getpid()]
