"""The essay's lines run: both code blocks of the README, verbatim, on the scripted fake and on a real model; and the verbs around them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sharpen
from sharpen import Session, Training, api, load_model, load_tasks
from sharpen.errors import Refused
from sharpen.labels import content, copy_of, write_label
from sharpen.policies.scripted import scripted_model
from sharpen.records import Label, Model, Task, Trajectory, Verdict
from sharpen.sampling import SamplingSettings
from sharpen.tasks.base import Splits
from sharpen.tasks.reasoning_gym import ReasoningGym

README = Path(__file__).parent.parent / "README.md"


def essay() -> str:
    """The README's block with the essay's lines."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "cands = [sample(model, task) for _ in range(N)]" in block)


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """An ephemeral session with settings small enough for a test, in the place of the default one."""
    session = Session(tmp_path / "session", sampling=SamplingSettings(n=4, max_tokens=12), training=Training(epochs=1))
    monkeypatch.setattr(api, "_ephemeral", lambda: session)
    yield session
    session.close()


def sums(n: int = 30) -> ReasoningGym:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    return ReasoningGym(dataset="chain_sum", config=config, splits=Splits(train=n))


def scripted(tmp_path: Path, skill: float = 0.5) -> Model:
    scripted_model(tmp_path / "base", skill=skill)
    return load_model(str(tmp_path / "base"))


def test_the_essays_lines_run_on_the_fake(quiet: Session, tmp_path: Path) -> None:
    model, tasks = scripted(tmp_path), load_tasks(sums())
    scope = {"model": model, "tasks": tasks, "task": next(iter(tasks)), "N": 8, "K": 2}
    exec(compile(essay(), "README", "exec"), scope)
    assert 0 < len(scope["cands"]) == 8
    assert scope["model"].lineage.base == model.lineage.base and scope["model"].fingerprint != model.fingerprint
    assert scope["model"].lineage.parent is not None
    assert all(candidate.bound.tasks is tasks for candidate in scope["good"])
    rate = [bool(quiet.verify(c)) for c in quiet.sample_many(scope["model"], tasks)]
    assert sum(rate) / len(rate) > 0.7  # it learnt


SCRIPT = """
from sharpen import load_tasks, sample, verify
from sharpen.tasks.base import Splits
from sharpen.tasks.reasoning_gym import ReasoningGym
tasks = load_tasks(ReasoningGym(dataset="chain_sum", splits=Splits(train=1)))
print(verify(sample({model!r}, next(iter(tasks)))).outcome)
"""


def test_a_script_with_the_verbs_ends(tmp_path: Path) -> None:
    """What closes the engine at exit needs the loop, which must not have stopped by then."""
    scripted(tmp_path)
    shown = subprocess.run([sys.executable, "-c", SCRIPT.format(model=str(tmp_path / "base"))], capture_output=True, text=True, timeout=600)
    assert (shown.returncode, shown.stderr) == (0, "") and shown.stdout.strip() in ("pass", "fail")


@pytest.mark.real
def test_the_essays_lines_run_on_a_real_model(quiet: Session) -> None:
    model = load_model("smollm2-135m-instruct")
    quiet.sampling = SamplingSettings(n=4, max_tokens=64)
    sums_ = load_tasks(sums(2))
    # Any answer that comes to its end counts as success: the lines are on trial here, not the model.
    tasks = sharpen.TaskSet("answers", sums_.tasks, sums_.environment, _Answers())
    scope = {"model": model, "tasks": tasks, "task": next(iter(tasks)), "N": 4, "K": 1}
    exec(compile(essay(), "README", "exec"), scope)
    trained = scope["model"]
    assert trained.fingerprint != model.fingerprint
    assert (Path(trained.path) / "model.safetensors").exists()


class _Answers:
    """Passes any finished episode, which is what success means here."""

    name, exact = "answers", True

    def verify(self, task: sharpen.Task, trajectory: sharpen.Trajectory) -> sharpen.Verdict:
        return sharpen.Verdict(key=trajectory.key, outcome="pass", verifier=self.name)


def test_n_calls_make_n_different_tries_and_run_side_by_side(quiet: Session, tmp_path: Path) -> None:
    model, task = scripted(tmp_path), next(iter(load_tasks(sums(1))))
    candidates = [sharpen.sample(model, task) for _ in range(8)]
    assert sorted(candidate.trajectory.key.index for candidate in candidates) == list(range(8))
    assert len({candidate.trajectory.messages[-1].content for candidate in candidates}) > 1


def test_a_sample_is_on_disk_before_it_is_seen(quiet: Session, tmp_path: Path) -> None:
    stream = sharpen.sample_many(scripted(tmp_path), load_tasks(sums(10)))
    candidate = next(stream)
    text = "".join(path.read_text() for path in (quiet.folder / "trajectories").glob("*.jsonl"))
    assert json.dumps(candidate.trajectory.key.task) in text
    stream.close()  # type: ignore[attr-defined]


def test_leaving_the_loop_early_stops_the_work(quiet: Session, tmp_path: Path) -> None:
    for _ in sharpen.sample_many(scripted(tmp_path), load_tasks(sums(30)), 50):
        break
    made = sum(len(path.read_text().splitlines()) for path in (quiet.folder / "trajectories").glob("*.jsonl"))
    assert made < 1500


def test_a_verdict_is_true_for_a_pass_only() -> None:
    from sharpen.records import SampleKey

    at = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    assert sharpen.Verdict(key=at, outcome="pass", score=0.0)
    assert not sharpen.Verdict(key=at, outcome="fail", score=0.9)
    assert not sharpen.Verdict(key=at, outcome="error", score=1.0)


def test_training_on_nothing_is_refused_in_one_line(quiet: Session, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing to train on: no candidate passed"):
        sharpen.sft(scripted(tmp_path), [])


class _Guess:
    """Passes every second try, whatever it says."""

    name, exact = "guess", False

    def verify(self, task: sharpen.Task, trajectory: sharpen.Trajectory) -> sharpen.Verdict:
        return sharpen.Verdict(key=trajectory.key, outcome="pass" if trajectory.key.index % 2 else "fail", verifier=self.name)


def test_what_an_unaudited_verifier_kept_does_not_train_unless_trusted_and_then_says_so(
    quiet: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, exact = scripted(tmp_path), load_tasks(sums())
    tasks = sharpen.TaskSet("guessed", exact.tasks, exact.environment, _Guess())
    good = sharpen.filter(sharpen.sample_many(model, tasks), sharpen.verify)
    with pytest.raises(Refused, match="the verifier guess is neither exact nor audited: no row is labelled") as caught:
        sharpen.sft(model, good)
    line = str(caught.value)
    assert (
        f"sharpen label {quiet.folder} --among passed" in line
        and "trust_unaudited_verifier=True goes on without" in line
        and "\n" not in line
    )
    with pytest.raises(Refused, match="neither exact nor audited"):  # whatever chose them
        sharpen.sft(
            model, sharpen.filter(good, lambda candidate: sharpen.Verdict(key=candidate.trajectory.key, outcome="pass", verifier="mine"))
        )

    trusted = sharpen.sft(model, good, trust_unaudited_verifier=True)
    assert trusted.lineage.banners == ("nobody audited the verifier guess: how much of what it kept is truly good is not known",)
    assert load_model(trusted.path).lineage.banners == trusted.lineage.banners
    right = sharpen.filter(sharpen.sample_many(trusted, exact), sharpen.verify)
    assert sharpen.sft(trusted, right).lineage.banners == trusted.lineage.banners  # a child inherits

    for candidate in good:
        one = candidate.trajectory
        write_label(Path("labels/session.jsonl"), Label(
            key=one.key, digest=content(one), label="good", labeller="ann", at="", seconds=1.0, of=len(good), inclusion=1.0, population="p",
            trajectory=copy_of(one),
        ))  # fmt: skip
    assert sharpen.sft(model, good).lineage.banners == ()  # labels that lie where sharpen label writes them


def test_what_fails_an_exact_verifier_or_has_none_does_not_train_in_silence(quiet: Session, tmp_path: Path) -> None:
    model, exact = scripted(tmp_path), load_tasks(sums())
    tries = list(sharpen.sample_many(model, exact))
    bad = [candidate for candidate in tries if not sharpen.verify(candidate)]
    with pytest.raises(
        Refused, match=rf"^{len(bad)} of {len(tries)} candidates do not pass the verifier .*which is exact; leave them out, or"
    ):
        sharpen.sft(model, tries)
    assert "do not pass" in sharpen.sft(model, bad, trust_unaudited_verifier=True).lineage.banners[0]
    bare = sharpen.TaskSet("bare", exact.tasks, exact.environment, None)
    with pytest.raises(Refused, match="has no verifier: without filtering this is SFT on average behaviour; give the tasks one, or say"):
        sharpen.sft(model, sharpen.sample_many(model, bare))


def test_verifying_without_a_verifier_is_refused(quiet: Session, tmp_path: Path) -> None:
    tasks = load_tasks(sums(1))
    bare = sharpen.TaskSet(tasks.name, tasks.tasks, tasks.environment, None)
    candidate = sharpen.sample(scripted(tmp_path), next(iter(bare)))
    with pytest.raises(Refused, match="no verifier"):
        sharpen.verify(candidate)


def test_a_verdict_that_was_an_error_is_asked_for_again(quiet: Session, tmp_path: Path) -> None:
    class Flaky:
        name, exact, asked = "flaky", True, 0

        def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
            self.asked += 1
            if self.asked == 1:
                raise OSError("the disk was away")
            return Verdict(key=trajectory.key, outcome="pass", verifier=self.name)

    tasks, verifier = load_tasks(sums(1)), Flaky()
    candidate = sharpen.sample(scripted(tmp_path), next(iter(sharpen.TaskSet("once", tasks.tasks, tasks.environment, verifier))))
    assert [sharpen.verify(candidate).outcome for _ in range(3)] == ["error", "pass", "pass"] and verifier.asked == 2


def test_the_public_face_is_exactly_this() -> None:
    assert sharpen.__all__ == [
        "Bench", "Candidate", "EvaluationSettings", "Ladder", "LadderSettings", "Message", "Model", "Refused", "RunSettings",
        "SamplingSettings", "ScriptedPolicy", "SelectionSettings", "Session", "SharpenError", "Task", "TaskSet", "TermsSettings", "Training",
        "Trajectory", "Verdict", "filter", "load_model", "load_tasks", "sample", "sample_many", "sft", "verify",
    ]  # fmt: skip
    assert all(getattr(sharpen, name) is not None for name in sharpen.__all__)
    with pytest.raises(AttributeError):
        _ = sharpen.nothing  # type: ignore[attr-defined]
