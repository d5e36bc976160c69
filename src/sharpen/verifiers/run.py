"""The one boundary where a verifier that raises or hangs becomes an ``error`` verdict."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
from msgspec.structs import replace

from sharpen.errors import CapError, Stopped
from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Described, Verifier

_LATE = object()


def judge(task: Task, trajectory: Trajectory, verifier: Verifier, timeout_s: float = 60.0) -> Verdict:
    """The verdict on ``trajectory``. Raises Stopped and CapError alone, where caps leave no room for what the verifier itself asks: that is no verdict.

    Broken or cancelled episodes are ``error`` and those that ran out of turns, tokens or context are ``fail``, both without asking the
    verifier. A verifier that raises, returns no verdict or is not back after ``timeout_s`` seconds, or its own ``timeout_s`` where that is more,
    gives ``error``; its thread cannot be ended and is left behind (it does not keep the process alive), so code that may hang belongs in a process of
    its own. Verifiers that hold a limit of their own (``Properties.own_limit``) are asked directly: waiting for a free process is then nobody's time.
    """

    def verdict(outcome: str, reason: str) -> Verdict:
        reason = " ".join(reason.split())[:500]
        return Verdict(key=trajectory.key, outcome="fail" if outcome == "fail" else "error", reason=reason, verifier=verifier.name)

    if trajectory.stop in ("error", "cancelled"):
        return verdict("error", f"the episode ended by {trajectory.stop}: {trajectory.error or 'no reason given'}")
    if trajectory.stop != "done":
        return verdict("fail", f"the episode ended by {trajectory.stop}")

    timeout_s = max(timeout_s, getattr(verifier, "timeout_s", 0.0))
    own_limit = isinstance(verifier, Described) and verifier.properties.own_limit
    answer = _ask(verifier, task, trajectory) if own_limit else _watched(verifier, task, trajectory, timeout_s)
    if answer is _LATE:
        return verdict("error", f"the verifier was not back after {timeout_s:g} s")
    if isinstance(answer, Stopped | CapError):
        raise answer
    if isinstance(answer, BaseException):
        return verdict("error", f"the verifier raised {type(answer).__name__}: {answer}")
    if not isinstance(answer, Verdict):
        return verdict("error", f"the verifier returned {type(answer).__name__}, not a Verdict")
    given = replace(answer, key=trajectory.key)  # a verdict is on this trajectory, whatever its author wrote
    try:  # building one checks nothing, and one that cannot be read back ruins what is on disk
        msgspec.convert(msgspec.to_builtins(given), Verdict)
    except (msgspec.ValidationError, TypeError) as error:
        return verdict("error", f"the verifier returned a Verdict that is none: {error}")
    if given.score is not None and not math.isfinite(given.score):
        return verdict("error", f"the verifier returned a Verdict with the score {given.score}, which is no finite number")
    return given


def judge_many(
    tries: Iterable[tuple[Task, Trajectory]], verifier: Verifier, timeout_s: float = 60.0, at_once: int = 64
) -> Iterator[tuple[Trajectory, Verdict]]:
    """``judge`` on each of ``tries``, in their order, ``at_once`` at a time, or as many as the verifier wants; ``tries`` are drawn as they are needed.

    What drawing or judging them raises is raised when the verdicts under way are given.
    """
    at_once = max(at_once, getattr(verifier, "at_once", 0))
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="verdicts")
    under_way: deque[tuple[Trajectory, Future[Verdict]]] = deque()
    left = iter(tries)
    ended: BaseException | None = None
    try:
        while ended is None or under_way:
            if ended is None and len(under_way) < at_once:
                try:
                    task, trajectory = next(left)
                except Exception as end:
                    ended = end
                else:
                    under_way.append((trajectory, threads.submit(judge, task, trajectory, verifier, timeout_s)))
            else:
                trajectory, verdict = under_way.popleft()
                if (broken := verdict.exception()) is None:
                    yield trajectory, verdict.result()
                elif ended is None or isinstance(ended, StopIteration):
                    ended = broken
        if ended is not None and not isinstance(ended, StopIteration):
            raise ended
    finally:
        threads.shutdown(cancel_futures=True)


def _ask(verifier: Verifier, task: Task, trajectory: Trajectory) -> object:
    """What the verifier returns, or what it raises."""
    try:
        return verifier.verify(task, trajectory)
    except Exception as error:
        return error


def _watched(verifier: Verifier, task: Task, trajectory: Trajectory, timeout_s: float) -> object:
    """The same, in a thread of its own; ``_LATE`` where it is not back in time."""
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(verifier.verify(task, trajectory))
        except BaseException as error:  # a verifier may call sys.exit; that too is its failure, not ours
            answers.append(error)

    thread = threading.Thread(target=ask, name=f"verifier {verifier.name}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else _LATE
