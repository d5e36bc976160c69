"""The program that runs inside a box, as the first process of its own process namespace. It knows nothing of sharpen: ``box.py`` passes its text
to a bare interpreter, and after that the source of the functions that jobs may name.

It waits for jobs on its standard input, a socket, and forks once for each: a warm interpreter that has nothing of the job before. A job
gets user and mount namespaces of its own, a fresh ``/tmp`` of a bounded size, no capabilities, no way to new namespaces (a system call filter) and
the limits below; when it ends, or its time does, every process in the box but this one is killed, and they are gone before the next job
begins. What a job says goes over files that came with it; what this process answers is only how the job ended. Where the system
forbids namespaces inside a box, jobs run in the box's own, and the box is thrown away after one (``mode`` "once"). In ``mode`` "bare" there is no box at
all: the user has named the risk.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

NEWNS, NEWUSER = 0x00020000, 0x10000000
NAMESPACES = 0x7E020080  # every CLONE_NEW* flag of clone(2)
NOSUID, NODEV, NOEXEC, RDONLY = 2, 4, 8, 1
JUDGED = 65534  # the user inside: nobody
PACE = 0.025  # seconds between two looks at what a job has taken
FIRST = 0.05  # before the first: most jobs are gone by then, and cost no look

# system call numbers, x86_64 and aarch64: <asm/unistd_64.h>, <asm-generic/unistd.h>
DENIED = {
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "personality": (135, 92), "syslog": (103, 116), "quotactl": (179, 60),
    "acct": (163, 89), "swapon": (167, 224), "reboot": (169, 142), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "pidfd_getfd": (438, 438), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip
# of the caller itself (0) only: the box's first process is the same user's as a job, and every later job's limits come from it
OWN = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
MACHINES = {"x86_64": (0, 0xC000003E, 56, 41), "aarch64": (1, 0xC00000B7, 220, 198)}  # column, AUDIT_ARCH, clone, socket
CLONE3 = 435

libc = ctypes.CDLL(None, use_errno=True)
if hasattr(libc, "prctl"):
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def send(to: socket.socket, message: Any) -> None:
    body = json.dumps(message).encode()
    to.sendall(struct.pack("<I", len(body)) + body)


def receive(source: socket.socket) -> tuple[Any, list[int]]:
    """One message, None where it is empty, and the files that came with it; SystemExit where the other side is gone."""
    fds = array.array("i")
    head, ancillary, _, _ = source.recvmsg(4, socket.CMSG_SPACE(16 * fds.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    size = struct.unpack("<I", head + _exactly(source, 4 - len(head)))[0]
    return json.loads(_exactly(source, size)) if size else None, list(fds)


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = source.recv(min(count, 1 << 20))
        if not part:
            sys.exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# ---------------------------------------------------------------- what a job may not do


def filter_program() -> bytes:
    """A classic BPF program for seccomp(2): EPERM for ``DENIED``, ``OWN`` on others, new namespaces, and sockets that are neither local nor IP."""
    column, arch, clone, sock = MACHINES[platform.machine()]
    load, equal, at_least, any_of, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, eperm, enosys, no_family = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026, 0x00050061
    steps = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, 0)]
    if column == 0:  # the x32 calls, under other numbers
        steps += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, enosys)]
    steps += [(equal, 0, 1, CLONE3), (answer, 0, 0, enosys)]  # glibc then uses clone, whose flags can be looked at
    steps += [(equal, 0, 4, clone), (load, 0, 0, 16), (any_of, 0, 1, NAMESPACES), (answer, 0, 0, eperm), (answer, 0, 0, allow)]
    steps += [(equal, 0, 6, sock), (load, 0, 0, 16), (equal, 2, 0, 1), (equal, 1, 0, 2), (equal, 0, 1, 10)]
    steps += [(answer, 0, 0, allow), (answer, 0, 0, no_family)]
    for numbers in OWN.values():
        steps += [(equal, 0, 4, numbers[column]), (load, 0, 0, 16), (equal, 0, 1, 0), (answer, 0, 0, allow), (answer, 0, 0, eperm)]
    for numbers in DENIED.values():
        steps += [(equal, 0, 1, numbers[column]), (answer, 0, 0, eperm)]
    steps.append((answer, 0, 0, allow))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def enter(disk: int, files: int, owner: int, group: int) -> None:
    """User and mount namespaces of its own, a fresh /tmp, and no /proc. OSError where the system forbids it."""
    check(libc.prctl(4, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # else /proc/self is root's, and the maps cannot be written
    check(libc.unshare(NEWUSER | NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("gid_map", f"{JUDGED} {group} 1"), ("uid_map", f"{JUDGED} {owner} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)
    plain = f"size={disk},nr_inodes={files},mode=0700"
    check(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", NOSUID | NODEV, plain.encode()), "mount /tmp")
    check(libc.mount(b"tmpfs", b"/proc", b"tmpfs", NOSUID | NODEV | NOEXEC | RDONLY, b"size=4k,nr_inodes=2"), "mount /proc")


def confine(limits: dict[str, Any], mode: str) -> None:
    """Put the limits on this process and give up every right. What is set here, no child of it can undo."""
    cpu = max(1, int(limits["cpu_s"] + 0.999))
    wanted = [
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, int(limits["memory_mb"] * 2**20)),
        (resource.RLIMIT_FSIZE, int(limits["disk_mb"] * 2**20)),
        (resource.RLIMIT_NOFILE, 128),
        (resource.RLIMIT_CORE, 0),
    ]
    if mode != "bare":  # there, it would count the user's other processes
        wanted.append((resource.RLIMIT_NPROC, limits["processes"] + (mode == "once")))  # the namespace is this process's too
    for what, most in wanted:
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):
            if mode != "bare":  # macOS knows no RLIMIT_AS
                raise
    if mode == "bare":
        return
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    check(libc.capset(header, nothing), "capset")
    check(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    steps = ctypes.create_string_buffer(FILTER, len(FILTER))
    program = Filter(len(FILTER) // 8, ctypes.addressof(steps))
    check(libc.prctl(22, 2, ctypes.addressof(program), 0, 0), "PR_SET_SECCOMP")


class Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("steps", ctypes.c_void_p)]


# ---------------------------------------------------------------- a job


def start(job: dict[str, Any], fds: list[int], setup: dict[str, Any], functions: dict[str, Any]) -> tuple[int, int]:
    """Fork; ``fds[0]`` holds the job's data, which only the child reads: what this process ever held, the next job finds in its own memory.

    Returns the child's id and a pipe on which "+" comes once the job has begun, and otherwise why it could not.
    """
    told, tell = os.pipe()
    if child := os.fork():
        os.close(tell)
        return child, told
    begun = False
    try:
        with open(fds[0], "rb") as file:  # noqa: PTH123
            data = json.load(file)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)
        limits = setup["limits"]
        if setup["mode"] == "many":
            enter(int(limits["disk_mb"] * 2**20), limits["files"], os.getuid(), os.getgid())
        # its files become 3, 4, ...; nothing else stays open
        kept = [os.dup2(os.dup(fd), 64 + place, inheritable=False) for place, fd in enumerate([*fds[1:], tell])]
        null = os.open("/dev/null", os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(null, place)
        os.closerange(3, 64)
        places = [os.dup2(fd, 3 + place, inheritable=False) for place, fd in enumerate(kept)]
        os.closerange(3 + len(kept), 4096)
        tell = places.pop()
        os.chdir("/tmp" if setup["mode"] != "bare" else job["work"])
        confine(limits, setup["mode"])
        os.write(tell, b"+")
        os.close(tell)
        begun = True
        functions[job["function"]](data, *places)
        os._exit(0)
    except BaseException as error:
        if not begun:
            os.write(tell, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit((error.code or 0) & 255 if isinstance(error, SystemExit) and isinstance(error.code, int | None) else 1)


def _code(status: int) -> int:
    """An exit status as shells have it: 128 and the signal's number where a signal ended the process."""
    return 128 + (status & 127) if status & 127 else status >> 8


def taken(bare: bool) -> tuple[int, int]:
    """Bytes of memory and the number of processes of everything in the box but this process."""
    size = count = 0
    if bare:
        return 0, 0
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and int(name) != 1:
            try:
                with open(f"/proc/{name}/statm") as file:  # noqa: PTH123
                    size += int(file.read().split()[1])
                count += 1
            except (OSError, IndexError):
                pass
    return size * resource.getpagesize(), count


def watch(pid: int, control: socket.socket, bell: socket.socket, setup: dict[str, Any], began: float) -> dict[str, Any]:
    """Wait for the job to end, or end it; then end whatever it left behind."""
    limits, bare = setup["limits"], setup["mode"] == "bare"
    how, code, peak, look = "", None, 0, time.monotonic() + FIRST
    while not how:
        left = began + limits["wall_s"] - time.monotonic()
        ready = select.select([control, bell], [], [], max(0.0, min(left, look - time.monotonic())))[0]
        if bell in ready:
            bell.recv(4096)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                how, code = "exit", _code(status)
                break
        if control in ready:
            _exactly(control, 4)  # the empty message; where sharpen is gone this exits, and with this process goes the box
            how = "stopped"
        elif left <= 0:
            how = "time"
        elif time.monotonic() >= look:  # whatever else happens: a job can ring the bell without end
            size, count = taken(bare)
            peak = max(peak, size)
            if size > limits["memory_mb"] * 2**20:
                how = "memory"
            elif not bare and count > limits["processes"]:
                how = "processes"
            elif setup["mode"] == "once" and (seen := os.statvfs("/tmp")).f_files - seen.f_ffree > limits["files"]:
                how = "files"
            look = time.monotonic() + PACE
    sweep(pid, bare)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"how": how, "code": code, "seconds": time.monotonic() - began, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": peak / 2**20}


def sweep(pid: int, bare: bool) -> None:
    """Kill every process but this one, until none is left."""
    while True:
        try:
            if bare:
                os.killpg(pid, signal.SIGKILL)
            elif os.getpid() == 1:  # the whole box, and nothing else: from the first process of a namespace, -1 means that namespace
                os.kill(-1, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # the first process is every orphan's parent
            return
        time.sleep(0.0005)


FILTER = b""


def main() -> None:
    global FILTER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's handler would let a job end this process by it
    control = socket.socket(fileno=os.dup(0))
    setup, _ = receive(control)
    if setup["mode"] != "bare":
        if setup["user"] is not None:  # sharpen is root: become someone who is not, outside the box too
            os.setgroups([])
            os.setresgid(setup["user"], setup["user"], setup["user"])
            os.setresuid(setup["user"], setup["user"], setup["user"])
        check(libc.prctl(1, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
        check(libc.prctl(4, 0, 0, 0, 0), "PR_SET_DUMPABLE")  # no job may look into this process
        FILTER = filter_program()
    sys.path[:] = [*[place for place in sys.path if place], *setup["path"]]
    for name in setup["imports"]:
        __import__(name)
    functions: dict[str, Callable[..., None]] = {}
    exec(compile(setup["program"], "<sharpen>", "exec"), functions)
    ours, bell = socket.socketpair()
    ours.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    send(control, {"ready": True})
    while True:
        job, fds = receive(control)
        if job is None:  # "stop", for a job that had just ended
            continue
        began = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        pid, told = start(job, fds, setup, functions)
        for fd in fds:
            os.close(fd)
        ended = watch(pid, control, bell, setup, began)
        said = os.read(told, 4000)  # nobody is left who could keep it open, unless bare: there, a byte is there or the end is
        os.close(told)
        ended["begun"], ended["trouble"] = said == b"+", "" if said == b"+" else said.decode(errors="replace")
        ended["cpu"] -= before.ru_utime + before.ru_stime
        send(control, ended)


if __name__ == "__main__":
    main()
