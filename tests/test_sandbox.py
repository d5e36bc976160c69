"""What runs in a box cannot get out of it, cannot outlive it, and cannot take more than it was given."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from conftest import runs, wait_until
from sharpen.errors import SandboxError
from sharpen.sandbox import box as box_module
from sharpen.sandbox.box import Box, Boxes, Limits, Mode, mode, probe

pytestmark = pytest.mark.real  # processes of its own, killed and timed

LIMITS = Limits(wall_s=120.0, cpu_s=60.0, memory_mb=200.0, processes=6, disk_mb=8.0, files=64)  # seconds that no machine takes
SHORT = replace(LIMITS, wall_s=3.0, cpu_s=2.0)  # for what ends by its time
ELSEWHERE = {"home", "work", "var", "opt", "mnt", "srv", "sys", "run"} - {
    Path(sys.base_prefix).resolve().parts[1]
}  # Python itself is there
PROGRAM = """
import os, json
def run(data, out):
    space = {}
    exec(data, space)
    os.write(out, json.dumps(space.get("result")).encode())
"""


def tree(pid: int) -> list[int]:
    """Every process below ``pid`` that runs, those next to it first."""
    below: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                below.setdefault(int(parent), []).append(int(process.name))
    found = below.get(pid, [])[:]
    for one in found:
        found += below.get(one, [])
    return found


@pytest.fixture(params=["many", "once"])
def box(request: pytest.FixtureRequest, sandbox: None) -> Iterator[Box]:
    """Once with namespaces of its own for each job, and once as where the system forbids them inside a box."""
    if request.param not in ("once", mode("bubblewrap")):
        pytest.skip("this system forbids namespaces inside a box")
    made = Box(PROGRAM, LIMITS, request.param)
    yield made
    made.close()


def begun(box: Box) -> None:
    """Begin a job that says so and then sleeps; back when it has said so."""
    there, said = os.pipe()
    with os.fdopen(there, "rb") as heard:
        box.begin("run", "import os, time; os.write(3, b'begun'); time.sleep(600)", [said])
        os.close(said)
        assert heard.read(5) == b"begun"


def told(box: Box, source: str) -> tuple[Any, Any]:
    """How ``source`` ended and what it left in ``result``."""
    with tempfile.TemporaryFile() as out:
        ended = box.run("run", source, [out.fileno()])
        out.seek(0)
        return ended, json.loads(out.read() or b"null")


def test_a_job_does_what_it_is_told(box: Box) -> None:
    ended, result = told(box, "result = 6 * 7")
    assert (ended.how, ended.code, result) == ("exit", 0, 42)


def test_nothing_of_a_job_is_there_for_the_next(box: Box) -> None:
    told(box, "import builtins, json; builtins.leaked = 1; open('/tmp/note', 'w').write('answer')")
    _, result = told(box, "import os, builtins; result = [os.listdir('/tmp'), hasattr(builtins, 'leaked')]")
    assert result == [[], False]


def test_who_it_is_and_what_it_sees(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    _, seen = told(
        box,
        """
import os
status = open('/proc/self/status').read() if os.path.exists('/proc/self/status') else ''
groups = os.getgroups()
result = dict(uid=os.getuid(), gid=os.getgid(), root=sorted(os.listdir('/')), env=dict(os.environ), status=status, tmp=os.listdir('/tmp'))
try:
    os.setuid(0); result['uid'] = 0
except OSError: pass
""",
    )
    assert seen["uid"] != 0
    assert seen["gid"] != 0
    assert "API_TOKEN" not in seen["env"]
    assert not ELSEWHERE & set(seen["root"])
    if seen["status"]:
        caps = [line.split()[1] for line in seen["status"].splitlines() if line.startswith(("CapEff", "CapPrm", "CapAmb"))]
        assert {int(cap, 16) for cap in caps} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be mistaken for root")
def test_is_not_root_outside_either(box: Box) -> None:
    begun(box)
    assert box._process is not None
    first, job = tree(box._process.pid)  # of bubblewrap's own one
    for pid in (first, job):
        (uids,) = [line.split()[1:] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")]
        assert "0" not in uids
    box.stop()
    box.end()


@pytest.mark.parametrize(
    "place",
    [
        "/usr/lib/evil",
        "/usr/bin/python3",
        "/etc/passwd",
        "/evil",
        "/dev/evil",
        "/dev/shm/evil",
        f"{sys.base_prefix}/lib/evil.py",
        "/proc/evil",
    ],
)
def test_writes_nowhere_but_in_tmp(box: Box, place: str) -> None:
    _, result = told(
        box, f"try:\n    open({place!r}, 'w').write('x'); result = 'written'\nexcept OSError as error:\n    result = 'refused'"
    )
    assert result == "refused"


@pytest.mark.parametrize(
    "secret",
    [
        str(Path.home() / ".ssh"),
        *(f"/{name}" for name in sorted(ELSEWHERE & {"home"})),
        str(Path(__file__).parents[1]),
        "/etc/shadow",
        "/proc/1/environ",
        "/proc/1/mem",
        str(Path(__file__)),
    ],
)
def test_reads_no_secrets(box: Box, secret: str) -> None:
    _, result = told(
        box,
        f"import os\nread = lambda name: os.listdir(name) if os.path.isdir(name) else open(name, 'rb').read(9).hex()\n"
        f"try:\n    result = read({secret!r})\nexcept OSError:\n    result = 'no'",
    )
    assert result == "no"


def test_no_network(box: Box) -> None:
    with __import__("socket").create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, result = told(
            box,
            f"""
import socket
result = []
for family, address in ((2, ('127.0.0.1', {port})), (2, ('1.1.1.1', 53)), (10, ('::1', {port})), (40, (2, 1024)), (16, (0, 0)), (38, ('hash', 'md5'))):
    try:
        s = socket.socket(family, {{38: 5, 16: 3}}.get(family, 1))
        s.settimeout(1)
        (s.bind if family == 38 else s.connect)(address)
        result.append(family)
    except OSError: pass
""",
        )
    assert result == []


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",
        "libc.unshare(0x00020000)",
        "libc.syscall(56, 0x10000011, 0, 0, 0, 0)",
        "libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "libc.ptrace(16, 1, 0, 0)",
        "libc.syscall(319, b'hoard', 0)",
        "libc.shmget(0, 1 << 20, 0o1600)",
        "libc.syscall(250, 0, -3, 0)",
        "libc.syscall(425, 8, 0)",
        "libc.chroot(b'/tmp')",
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="these are x86_64's numbers")
def test_the_kernel_is_not_asked(box: Box, call: str) -> None:
    _, result = told(box, f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nresult = [{call}, ctypes.get_errno()]")
    assert result == [-1, 1]  # EPERM


HOGS = {
    "hang": ("while True:\n    pass", ("exit", "time")),
    "sleep": ("import time\ntime.sleep(99)", ("time",)),
    "ignores signals": ("import signal, time\nfor n in (15, 2, 1): signal.signal(n, signal.SIG_IGN)\ntime.sleep(99)", ("time",)),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", ("exit", "memory")),
    "memory of many": (
        "import os, time\nfor _ in range(5):\n    if not os.fork(): x = bytearray(120 << 20); time.sleep(99)\ntime.sleep(99)",
        ("memory", "exit"),
    ),
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", ("time", "processes", "exit")),
    "threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
        ("exit", "time", "processes"),
    ),
    "disk": ("import itertools\nfor n in itertools.count(): open(f'/tmp/{n % 50}', 'ab').write(b'x' * (1 << 20))", ("exit",)),
    "files": ("import itertools, time\nfor n in itertools.count(): open(f'/tmp/{n}', 'w').close()", ("exit", "files")),
    "raised limits": ("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (999, 999))", ("exit",)),
    "abort": ("import os\nos.abort()", ("exit",)),
    "kills everyone": ("import os, signal\nos.kill(1, 9); os.kill(1, signal.SIGSTOP); os.kill(-1, 9); os._exit(3)", ("exit",)),
}


@pytest.mark.parametrize("name", HOGS)
def test_limits_hold(box: Box, name: str) -> None:
    source, ways = HOGS[name]
    limits = box._limits = SHORT if "time" in ways else LIMITS  # the box is not there yet
    ended, _ = told(box, source)
    assert ended.how in ways
    assert ended.how != "exit" or ended.code != 0
    assert ended.peak_mb <= (limits.processes + 1) * limits.memory_mb  # what each may have by itself: the looks are 25 ms apart
    assert told(box, "result = 1")[1] == 1  # and the box does the next


ON_THE_FIRST = {
    "every signal": "import os, time\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass",
    "no open files": "import resource\nresource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    "no processor time": "import resource\nresource.prlimit(1, resource.RLIMIT_CPU, (0, 0))\nimport time; time.sleep(1)",
    "no memory": "import resource\nresource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20))",
    "last in line": "import os\nos.setpriority(0, 1, 19)",
    "its user's last in line": "import os\nos.setpriority(2, 0, 19)",
    "one processor": "import os\nos.sched_setaffinity(1, {min(os.sched_getaffinity(0))})",
    "when all else is idle": "import os\nos.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
    "its files": "import ctypes, os\nlibc = ctypes.CDLL(None)\nfor fd in range(64): assert libc.syscall(438, os.pidfd_open(1), fd, 0) == -1",
}
FOUND = """
import os, resource
names = [name for name in dir(resource) if name.startswith('RLIMIT_')]
result = [[resource.prlimit(0, getattr(resource, name)) for name in names], os.getpriority(0, 0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0)]
"""


@pytest.mark.parametrize("name", ON_THE_FIRST)
def test_the_process_that_waits_is_out_of_reach(box: Box, name: str) -> None:
    """It is the same user's as a job: what a job did to it would break this verdict, or every later one."""
    before = told(box, FOUND)[1]
    assert told(box, ON_THE_FIRST[name])[0].how == "exit"
    assert told(box, FOUND)[1] == before
    assert told(box, "result = len(bytearray(50 << 20))")[1] == 50 << 20


def test_limits_hold_while_the_bell_rings(box: Box) -> None:
    """A child's end wakes the process that watches; waking it without end must not keep it from looking."""
    flood = """
import os, signal, time
for _ in range(3):
    if not os.fork():
        while True: os.kill(1, signal.SIGCHLD)
for _ in range(2):
    if not os.fork():
        kept = bytearray(120 << 20)
        time.sleep(99)
time.sleep(99)
"""
    assert told(box, flood)[0].how == "memory"


EARLIER = r"""
import ctypes, gc, os, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
there, probe = os.pipe()
top = libc.sbrk(0)
places = {id(thing) >> 20 for thing in gc.get_objects()} | {(top >> 20) - n for n in range(40)}
found = set()
for page in [(place << 20) + at for place in places for at in range(0, 1 << 20, 4096)]:
    if libc.write(probe, ctypes.c_void_p(page), ctypes.c_size_t(1)) == 1:
        os.read(there, 1)
        found |= {text.decode() for text in re.findall(b"know" + b"n_[0-9]+", ctypes.string_at(page, 4096))}
result = sorted(found)
"""


def test_what_an_earlier_job_was_given_is_not_in_the_memory_of_the_next(box: Box) -> None:
    """It is a fork of a process that would otherwise have read it: another try's answer to the same task."""
    for number, size in enumerate((10, 700, 5000, 50_000), 1):
        told(box, f"x = 1  # known_{number}\n# {'y' * size} known_{number}00")
    assert told(box, EARLIER)[1] == []
    assert told(box, f"{EARLIER}\n# known_99")[1] == ["known_99"]  # it does find its own


def test_everything_a_job_started_is_gone(box: Box) -> None:
    told(box, "result = 0")
    before = len(tree(os.getpid()))
    daemon = """
import os, signal, time
for _ in range(2):
    if os.fork(): continue
    os.setsid()
    if os.fork(): os._exit(0)
    for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)
    time.sleep(600)
    os._exit(0)
result = 'left'
"""
    ended, result = told(box, daemon)
    assert (ended.how, result) == ("exit", "left")
    assert len(tree(os.getpid())) <= before
    box.close()
    assert not [pid for pid in tree(os.getpid()) if b"bwrap" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_job_can_be_stopped(box: Box) -> None:
    begun(box)
    box.stop()
    assert box.end().how == "stopped"
    with tempfile.TemporaryFile() as out:
        box.begin("run", "result = 1", [out.fileno()])
        select.select([box._control], [], [])
        box.stop()  # too late: it has ended
        assert box.end().how == "exit"
    assert told(box, "result = 2")[1] == 2


def test_dies_with_sharpen(sandbox: None) -> None:
    script = """
import os, time
from sharpen.sandbox.box import Box, Limits, mode
box = Box('import os, time\\ndef nap(data, out): os.write(out, b"begun"); time.sleep(6000)', Limits(wall_s=6000), mode('bubblewrap'))
box.begin('nap', None, [1])
time.sleep(6000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(5) == b"begun"
        below = tree(process.pid)
        assert len(below) >= 3  # bubblewrap, the box's first process, the job
        process.kill()
    wait_until(lambda: not any(runs(pid) for pid in below))


def test_many_jobs_leave_nothing(sandbox: None) -> None:
    with tempfile.TemporaryFile() as out:
        box = Box(PROGRAM, LIMITS, mode("bubblewrap"))
        box.run("run", "result = 1", [out.fileno()])
        gc.collect()  # what other tests left would else be closed in between
        fds, processes, size = len([*Path("/proc/self/fd").iterdir()]), len(tree(os.getpid())), _memory(box)
        for _ in range(200):
            box.run("run", "open('/tmp/x', 'w').write('x' * 100000)", [out.fileno()])
        assert len([*Path("/proc/self/fd").iterdir()]) <= fds and len(tree(os.getpid())) <= processes
        assert _memory(box) < size + 2 * 2**20
        box.close()


def _memory(box: Box) -> int:
    """Bytes that are allotted, whether or not the system gave pages for them, and of which size."""
    if box._process is None:  # thrown away after each job
        return 0
    pids = (box._process.pid, *tree(box._process.pid))
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[5]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


def test_a_box_that_was_killed_is_an_error_and_the_next_job_gets_a_new_one(sandbox: None) -> None:
    boxes = Boxes(PROGRAM, LIMITS)
    with pytest.raises(SandboxError, match="broke"), boxes.lend() as box:
        begun(box)
        assert box._process is not None
        os.kill(tree(box._process.pid)[0], signal.SIGKILL)  # the first of its namespace, with which every other goes
        box.end()
    with tempfile.TemporaryFile() as out, boxes.lend() as box:
        assert box.run("run", "result = 1", [out.fileno()]).code == 0
    boxes.close()


@pytest.mark.parametrize("said", ["", "/autogroup-1 nice 0\n", None])
def test_however_the_system_schedules_sessions(sandbox: None, monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    """In a session of its own, in none (the file is there and empty), and where Linux was built without."""
    asked, real = [], Path.read_text

    def read_text(path: Path, *args: Any, **more: Any) -> str:
        if not path.match("/proc/*/autogroup"):
            return real(path, *args, **more)
        asked.append(path)
        if said is None:
            raise FileNotFoundError(path)
        return said

    monkeypatch.setattr(Path, "read_text", read_text)
    made = Box(PROGRAM, LIMITS, "once")
    try:
        assert told(made, "result = 6 * 7")[1] == 42
        assert asked
    finally:
        made.close()


# ---------------------------------------------------------------- where there is none


@pytest.fixture
def unprobed() -> Iterator[None]:
    box_module._probed.cache_clear()
    yield
    box_module._probed.cache_clear()


def test_without_bubblewrap_one_line_says_how_to_get_it(unprobed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install bubblewrap" in probe()
    assert "\n" not in probe()
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        Boxes(PROGRAM, LIMITS)
    assert Boxes(PROGRAM, LIMITS, "none-i-trust-this-code")


def test_where_bubblewrap_cannot_make_namespaces(unprobed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bubblewrap that fails as the real one does on Ubuntu 24.04."""
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    line = probe()
    assert "setting up uid map: Permission denied" in line
    assert "\n" not in line


def test_other_systems_are_told_of_docker(unprobed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert "docker run" in probe()


def test_the_named_risk_runs_without_a_box() -> None:
    box = Box(PROGRAM, SHORT, "bare")
    try:
        assert told(box, "result = 6 * 7")[1] == 42
        assert told(box, "import time; time.sleep(60)")[0].how == "time"
        work: Mode = "bare"
        assert mode("none-i-trust-this-code") == work
    finally:
        box.close()
