"""The one boundary where a verifier that raises or hangs becomes an ``error`` verdict."""

from __future__ import annotations

import threading

from msgspec.structs import replace

from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Verifier


def judge(task: Task, trajectory: Trajectory, verifier: Verifier, timeout_s: float = 60.0) -> Verdict:
    """The verdict on ``trajectory``. Never raises.

    Broken or cancelled episodes are ``error`` and those that ran out of turns, tokens or context are ``fail``, both without asking the
    verifier. A verifier that raises, returns no verdict or is not back after ``timeout_s`` seconds, or its own ``timeout_s`` where that is more,
    gives ``error``; its thread cannot be ended and is left behind (it does not keep the process alive), so code that may hang belongs in a sandbox.
    """

    def verdict(outcome: str, reason: str) -> Verdict:
        reason = " ".join(reason.split())[:500]
        return Verdict(key=trajectory.key, outcome="fail" if outcome == "fail" else "error", reason=reason, verifier=verifier.name)

    if trajectory.stop in ("error", "cancelled"):
        return verdict("error", f"the episode ended by {trajectory.stop}: {trajectory.error or 'no reason given'}")
    if trajectory.stop != "done":
        return verdict("fail", f"the episode ended by {trajectory.stop}")

    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(verifier.verify(task, trajectory))
        except BaseException as error:  # a verifier may call sys.exit; that too is its failure, not ours
            answers.append(error)

    thread = threading.Thread(target=ask, name=f"verifier {verifier.name}", daemon=True)
    thread.start()
    timeout_s = max(timeout_s, getattr(verifier, "timeout_s", 0.0))
    thread.join(timeout_s)
    if not answers:
        return verdict("error", f"the verifier was not back after {timeout_s:g} s")
    answer = answers[0]
    if isinstance(answer, BaseException):
        return verdict("error", f"the verifier raised {type(answer).__name__}: {answer}")
    if not isinstance(answer, Verdict):
        return verdict("error", f"the verifier returned {type(answer).__name__}, not a Verdict")
    return replace(answer, key=trajectory.key)  # a verdict is on this trajectory, whatever its author wrote
