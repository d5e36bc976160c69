"""Boxes: running code nobody vouches for. See ``inside.py`` for what a job in one may not do."""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec

from sharpen.errors import SandboxError
from sharpen.records import Record

Kind = Literal["bubblewrap", "none-i-trust-this-code"]
Mode = Literal["many", "once", "bare"]
START_S = 60.0  # for a box to start
GRACE_S = 10.0  # for a box to say that a job has ended, after the job's own time
WARM = (
    *(
        "typing",
        "math",
        "collections",
        "itertools",
        "functools",
        "re",
        "random",
        "string",
        "heapq",
        "bisect",
        "copy",
        "operator",
        "datetime",
    ),
    *("decimal", "fractions", "statistics", "cmath"),
)


class Limits(Record, frozen=True, kw_only=True):
    """What one job may take. Passing any of them ends it.

    ``wall_s`` and ``cpu_s`` are seconds, the latter of each of its processes; ``memory_mb`` MiB of address space of each process, and of resident
    memory of all together (looked at every 25 ms); ``processes`` counts threads too; ``disk_mb`` MiB and ``files`` files in its ``/tmp``, the only
    place it can write to. Above them all stands what the box cannot know of: how busy the machine is.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_mb: float = 512.0
    processes: int = 16
    disk_mb: float = 64.0
    files: int = 1024


class Ended(Record, frozen=True, kw_only=True):
    """How a job ended: by itself (``exit`` with ``code``, over 128 where a signal ended it), or over a limit, or ``stopped`` by the caller.

    ``seconds`` and ``cpu`` seconds it took; ``peak_mb`` MiB, 0 where it was over before anyone looked.
    """

    how: Literal["exit", "time", "memory", "processes", "files", "stopped"]
    code: int | None
    seconds: float
    cpu: float
    peak_mb: float
    begun: bool
    trouble: str


class Box:
    """A sandbox with a warm interpreter that does one job at a time, each in a process and in namespaces of its own. For one thread.

    ``program`` is Python source that imports only the standard library; a job is a call of one of its functions. ``packages`` lets it see what
    is installed beside sharpen. SandboxError where the box does not start; see ``probe``.
    """

    def __init__(self, program: str, limits: Limits, mode: Mode, *, packages: bool = False) -> None:
        self._program, self._limits, self._mode, self._packages = program, limits, mode, packages
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._work: str | None = None

    def begin(self, function: str, data: Any, fds: Sequence[int] = ()) -> None:
        """Start ``function(data, *files)`` where ``data`` is plain and ``fds`` are open files here, which stay open here."""
        self.start()
        if self._mode == "bare":
            self._work = tempfile.mkdtemp(prefix="sharpen-")
        with unnamed(msgspec.json.encode(data)) as given:
            self._send({"function": function, "work": self._work}, [given, *fds])

    def end(self) -> Ended:
        """Wait until the job has ended, and everything that it started with it. SandboxError where the box itself broke."""
        try:
            ended = msgspec.convert(self._receive(self._limits.wall_s + GRACE_S), Ended)
        except BaseException:
            self.close()
            raise
        if self._mode == "once":
            self.close()
        self._forget()
        if not ended.begun and ended.how == "exit":
            raise SandboxError(f"a job could not be set up: {ended.trouble or f'it ended with status {ended.code}'}")
        return ended

    def stop(self) -> None:
        """End the job now; ``end`` then says "stopped", unless it had ended before."""
        assert self._control is not None
        with contextlib.suppress(OSError):
            self._control.sendall(b"\0\0\0\0")

    def run(self, function: str, data: Any, fds: Sequence[int] = ()) -> Ended:
        self.begin(function, data, fds)
        return self.end()

    def close(self) -> None:
        """End the box with everything in it. May be called twice; the next job starts a new one."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            # with the first process of the box's namespace goes every other; it is not the same user's as bubblewrap's, whose end it would not notice
            with contextlib.suppress(OSError, ValueError):
                for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        self._process = self._control = None
        self._forget()

    def _forget(self) -> None:
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)
        self._work = None

    def start(self) -> None:
        """Start the box now, unless it runs: a job does it too, but then others that wait for that job wait for the box."""
        if self._process is not None:
            return
        user = _someone() if os.geteuid() == 0 and self._mode != "bare" else None
        command = _interpreter() if self._mode == "bare" else [*_bubblewrap(self._limits, self._mode, self._packages), *_interpreter()]
        ours, theirs = socket.socketpair()
        try:
            # a child is killed when the *thread* that started it ends, so all are started by one that stays
            self._process = _keeper().submit(_spawn, command, theirs).result()
        except OSError as error:
            ours.close()
            raise SandboxError(f"the sandbox does not start: {error}") from None
        finally:
            theirs.close()
        self._control = ours
        setup = {
            "mode": self._mode,
            "user": user,
            "limits": msgspec.to_builtins(self._limits),
            "path": [place if self._mode == "bare" else inside for place, inside in _packages().items()] if self._packages else [],
            "imports": WARM,
            "program": self._program,
        }
        try:
            self._send(setup)
            self._receive(START_S)
        except SandboxError as error:
            self._process.kill()
            assert self._process.stderr is not None
            said = self._process.stderr.read(4000).decode(errors="replace").strip()
            self.close()
            raise SandboxError(f"the sandbox does not start: {said.splitlines()[-1] if said else error}") from None

    def _send(self, message: Any, fds: Sequence[int] = ()) -> None:
        body = msgspec.json.encode(message)
        assert self._control is not None
        try:
            self._control.settimeout(GRACE_S)
            head = struct.pack("<I", len(body))
            self._control.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
            self._control.sendall(body)
        except OSError as error:
            raise SandboxError(f"the sandbox broke: {error}") from None

    def _receive(self, seconds: float) -> Any:
        assert self._control is not None
        until, got, size = time.monotonic() + seconds, b"", 4
        while len(got) < size:
            self._control.settimeout(max(0.001, until - time.monotonic()))
            try:
                part = self._control.recv(size - len(got))
            except OSError as error:
                raise SandboxError(f"the sandbox broke: {error}") from None
            if not part:
                raise SandboxError("the sandbox broke: it ended by itself")
            got += part
            if len(got) == size == 4:
                size += struct.unpack("<I", got)[0]
        return msgspec.json.decode(got[4:])


class Boxes:
    """Boxes of one kind, lent to one thread each, made when there is none to spare. Safe to use from many threads.

    Idle ones end with this object, or with the interpreter.
    """

    def __init__(self, program: str, limits: Limits, kind: Kind = "bubblewrap", *, packages: bool = False) -> None:
        self._make = functools.partial(Box, program, limits, mode(kind), packages=packages)
        self._idle: list[Box] = []
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _end, self._idle, self._lock)

    @contextlib.contextmanager
    def lend(self) -> Iterator[Box]:
        with self._lock:
            box = self._idle.pop() if self._idle else self._make()
        try:
            yield box
        except BaseException:
            box.close()  # who knows what it was in the middle of
            raise
        with self._lock:
            if self.close.alive:
                self._idle.append(box)
                return
        box.close()


def _end(idle: list[Box], lock: threading.Lock) -> None:
    with lock:
        while idle:
            idle.pop().close()


@contextlib.contextmanager
def unnamed(content: bytes, most: int | None = None) -> Iterator[int]:
    """An open file that has no name, holding ``content``; with ``most``, one that cannot grow over so many bytes, whoever writes to it."""
    if not hasattr(os, "memfd_create"):  # not Linux, so not a sandbox
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            yield file.fileno()
        return
    fd = os.memfd_create("sharpen", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, len(content) if most is None else most)
        os.pwrite(fd, content, 0)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | (fcntl.F_SEAL_WRITE if most is None else 0) | fcntl.F_SEAL_SEAL
        )
        yield fd
    finally:
        os.close(fd)


# ---------------------------------------------------------------- what this machine can do


def mode(kind: Kind) -> Mode:
    """How boxes of ``kind`` work here. SandboxError, one line, where they do not."""
    if kind == "none-i-trust-this-code":
        return "bare"
    found, missing = _probed()
    if missing:
        raise SandboxError(missing)
    return found


def probe() -> str:
    """What this machine lacks for a sandbox and how to get it, in one line; "" where one works. Found out once a process, by starting one."""
    return _probed()[1]


@functools.cache
def _probed() -> tuple[Mode, str]:
    if missing := lacking(platform.system(), platform.machine(), shutil.which("bwrap")):
        return "once", missing
    modes: tuple[Mode, ...] = ("many", "once")
    said = ""
    for tried in modes:
        box = Box("def nothing(data):\n    pass\n", Limits(), tried)
        try:
            if box.run("nothing", None).code == 0:
                return tried, ""
            said = "a job in it fails"
        except SandboxError as error:
            said = str(error)
        finally:
            box.close()
    return "once", f"{said}; {advice()}"


def lacking(system: str, machine: str, bwrap: str | None) -> str:
    """What a machine (``platform.system()``, ``platform.machine()``, where its bwrap lies) lacks to try a box at all, in one line; "" where nothing."""
    if system != "Linux":
        return (
            f"the sandbox needs Linux, and this is {'macOS' if system == 'Darwin' else system}: run sharpen in docker "
            "(docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined, with bubblewrap installed in the image)"
        )
    if machine not in ("x86_64", "aarch64"):
        return f"the sandbox knows the system calls of x86_64 and aarch64 only, and this machine is {machine}"
    if bwrap is None:
        return "the sandbox needs bubblewrap, which is not installed: apt-get install bubblewrap (dnf, pacman, apk: the same name)"
    return ""


def advice(root: Path = Path("/")) -> str:
    """What would let bubblewrap work that is there and fails, in one line, from what the system whose files lie in ``root`` says of itself."""

    def read(name: str) -> str:
        with contextlib.suppress(OSError):
            return (root / "proc/sys" / name).read_text().strip()
        return ""

    if read("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "Ubuntu's AppArmor forbids user namespaces to bubblewrap: sudo apt-get install apparmor-profiles && sudo ln -s "
            "/usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ && sudo systemctl reload apparmor"
        )
    if read("kernel/unprivileged_userns_clone") == "0":
        return "this kernel forbids user namespaces: sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if read("user/max_user_namespaces") == "0":
        return "this kernel allows no user namespaces: sudo sysctl -w user.max_user_namespaces=15000"
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return (
            "this container forbids namespaces: start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined"
        )
    return "bubblewrap must be able to make namespaces: try bwrap --ro-bind / / --unshare-all true"


def _bubblewrap(limits: Limits, mode: Mode, packages: bool) -> list[str]:
    """The command that makes a box: no network, an empty root with the system's programs read-only, no home, no environment."""
    args = [shutil.which("bwrap") or "bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    # root needs no user namespace to make a box, and gives up being root inside: a namespace would leave it root outside
    args += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
    args += ["--die-with-parent", "--as-pid-1", "--hostname", "box", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            args += ["--symlink", str(Path("/", name).readlink()), f"/{name}"]
        else:
            args += ["--ro-bind-try", f"/{name}", f"/{name}"]
    for place in ("/nix/store", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        args += ["--ro-bind-try", place, place]
    python = str(Path(sys.base_prefix).resolve())
    for place, inside in {python: python, **(_packages() if packages else {})}.items():
        if not inside.startswith("/usr/") and inside != "/usr":
            for above in reversed(Path(inside).parents[:-1]):  # open to all: the one above may be root's own home
                args += ["--perms", "0755", "--dir", str(above)]
            args += ["--ro-bind", place, inside]
    args += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    args += ["--perms", "1777", "--size", str(int(limits.disk_mb * 2**20)), "--tmpfs", "/tmp"] if mode == "once" else ["--dir", "/tmp"]
    return [*args, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _interpreter() -> list[str]:
    python = str(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
    return [python, "-S", "-s", "-P", "-c", Path(__file__).with_name("inside.py").read_text()]


def _packages() -> dict[str, str]:
    """Where what is installed lies, and where in a box: a virtual environment may lie in /tmp, which a box has one of its own."""
    places = dict.fromkeys(str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("purelib", "platlib"))
    return {place: f"/packages/{number}" for number, place in enumerate(places)}


@functools.cache
def _keeper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "sharpen sandbox")


def _spawn(command: list[str], control: socket.socket) -> subprocess.Popen[bytes]:
    # one hash seed for all: the order of a set must not decide a verdict
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # in a session of its own: else what is inside could type into the terminal that sharpen was started from
    process = subprocess.Popen(
        command, stdin=control.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env, start_new_session=True
    )
    _as_nice(process.pid)
    return process


def _as_nice(pid: int) -> None:
    """Linux schedules the session of ``pid`` as a group of its own, which is to be as nice as this one: where this one is in a group at all."""
    with contextlib.suppress(OSError):
        if said := Path("/proc/self/autogroup").read_text().split():
            Path(f"/proc/{pid}/autogroup").write_text(said[-1])


_users = iter(range(1_900_000_000 + os.getpid() % 100_000 * 1000, 2_000_000_000))


def _someone() -> int:
    """A user that nobody is, another for each box, so that no limit counts others' processes; nobody, where this container maps few users."""
    highest = max(int(line.split()[0]) + int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    user = next(_users)
    return user if user < highest else 65534
