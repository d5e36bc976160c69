"""A reward model as the verifier: it gives a number, and a threshold that labels stand for makes a verdict of it.

Scores of different tasks need not mean the same, so the best of several tries is the best at its own task: best-of-n chooses within one
(``agents/best_of_n.py``), and no share of all tries is ever taken from the top.
"""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from sharpen.errors import CapError, PolicyError, SettingsError, SharpenError, Stopped, nearest
from sharpen.models import load_model, read_config
from sharpen.policies.endpoint import Endpoint
from sharpen.policies.meter import Account, Meter, check_price
from sharpen.policies.prices import FREE, Price, price_of
from sharpen.records import Lineage, Message, Model, Record, Spent, Task, Trajectory, Verdict
from sharpen.store.files import digest
from sharpen.verifiers.base import Properties
from sharpen.verifiers.classifier import Classifier, ClassifierScorer
from sharpen.verifiers.pooling import Pooling, PoolingScorer
from sharpen.verifiers.shown import parts, said_anything, spoken

SECONDS = 1800.0  # for one verdict, as the first waits until the model is loaded

if TYPE_CHECKING:
    from sharpen.verifiers.calibration import Calibration


class RewardModel(Record, frozen=True, kw_only=True, tag_field="verifier", tag="reward_model"):
    """Settings of a reward model.

    ``model`` is a folder or hub id of a sequence classification model, or, with ``engine: pooling``, the name that the server gives it; ``template``
    replaces its chat template. A model with one label gives its logit; of several, ``label`` (its name or number) is the one that means good, and the
    score is its probability. A try passes at ``threshold`` or over; without one, tries have a score and no verdict (see ``calibrate``).
    """

    model: str
    template: str = ""
    engine: Classifier | Pooling = Classifier()
    label: str | int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise SettingsError(f"threshold is {self.threshold}, but must be a number")
        if isinstance(self.engine, Pooling) and isinstance(self.label, str):
            raise SettingsError(f"label is {self.label!r}, but a pooling server gives no names; give the label's number, from 0")
        if isinstance(self.engine, Pooling) and self.template:
            raise SettingsError("template is set, but a pooling server renders with its own; start the server with --chat-template")


class Scorer(Protocol):
    """Where scores come from."""

    def logits(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> tuple[list[float], int]:
        """One number for each label, and how many tokens at the beginning were left out. Blocks. A SharpenError where there are none."""
        ...

    def close(self) -> None: ...


class RewardModelVerifier:
    """``RewardModel`` at work. The model is loaded on the first call, and again after ``close``; many threads may ask at once."""

    exact = False
    properties = Properties(
        needs="nothing",
        exact="never",
        cost="model",
        own_limit=False,
        gameable="by whatever its training data rewarded by mistake: length, tone, form",
        fails="a score under `threshold`; there is no answer",
        errors="no finite score, the try is too long, or no `threshold` was calibrated",
    )
    timeout_s = SECONDS

    def __init__(self, settings: RewardModel) -> None:
        self.settings = settings
        self._model = None if isinstance(settings.engine, Pooling) else load_model(settings.model, settings.template)
        self._multiple = False  # several labels may hold at once
        if self._model is not None:
            if self._model.kind != "pretrained":
                raise SettingsError(f"{self._model.name} is a {self._model.kind} model; a reward model is a folder or hub id")
            config = read_config(self._model.path)
            self._multiple = config.get("problem_type") == "multi_label_classification"
            # Two labels are transformers' default, which it does not write down.
            names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
            self._at: int | None = _label(settings.label, [names[key] for key in sorted(names, key=int)], self._model.name)
        else:
            self._at = settings.label if isinstance(settings.label, int) else None
        identity = self._model.fingerprint if self._model else ""
        self.name = f"reward model {self._model.name if self._model else settings.model} {digest([settings, identity])[:8]}"
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()
        self.charge(Meter().account(self.name))

    def problem(self, task: Task) -> str:
        return ""

    @property
    def asks(self) -> bool:
        return self.remote

    @property
    def remote(self) -> bool:
        return isinstance(self.settings.engine, Pooling)

    def price(self, prices: Mapping[str, Price]) -> tuple[Price | None, str]:
        if not isinstance(engine := self.settings.engine, Pooling):
            return FREE, "no price for a token: it runs on this machine"
        name = self.settings.model
        served = Model(name=name, path=engine.base_url, fingerprint=name, kind="endpoint", lineage=Lineage(base=name))
        return price_of(served, Endpoint(base_url=engine.base_url, model=name), prices)

    def charge(self, account: Account) -> None:
        price, _ = self.price(account.meter.caps.prices)
        check_price(f"the reward model {self.settings.model}", price, account.meter.caps)
        self._charged = account, price

    def takes(self, tokens: float) -> tuple[Spent, Spent]:
        one = Spent(calls=1, prompt_tokens=round(tokens))
        return one, one

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        """A pass at the threshold or over. A try that says nothing fails; ``error`` where there is no finite score, or no threshold."""
        threshold = self.settings.threshold

        def verdict(outcome: Any, reason: str = "", score: float | None = None) -> Verdict:
            return Verdict(key=trajectory.key, outcome=outcome, score=score, reason=reason, verifier=self.name)

        if not said_anything(spoken(parts(task, trajectory)[1])):
            return verdict("fail", "there is no answer")
        try:
            score, left_out = self._score(task, trajectory)
        except (Stopped, CapError):
            raise
        except PolicyError as error:
            return verdict("error", f"{error.failure or 'policy'}: {error}")
        except SharpenError as error:
            return verdict("error", str(error))
        cut = f"; scored without the first {left_out} tokens" if left_out else ""
        if threshold is None:
            return verdict("error", f"no threshold: score {score:g}; calibrate one on labelled tries, and set threshold{cut}")
        passed = score >= threshold
        said = f"score {score:g} is {'at least' if passed else 'under'} {threshold:g}{cut}"
        return verdict("pass" if passed else "fail", said, score)

    def score(self, task: Task, trajectory: Trajectory) -> float:
        """The score alone: finite. ContextOverflow where the try is too long, PolicyError and ModelError where it cannot be had."""
        return self._score(task, trajectory)[0]

    def calibrate(self, labelled: Iterable[tuple[Task, Trajectory, bool]], bar: float = 0.9, level: float = 0.95) -> Calibration:
        """A threshold from tries that people labelled (true: good). See ``calibration.calibrate``, which says what the labels must be, and refuses.

        Raises what ``score`` raises: a try without a score must be left out by hand, since leaving out flatters.
        """
        from sharpen.verifiers.calibration import calibrate  # here, since reading settings needs neither numpy nor scipy

        tries = list(labelled)
        with ThreadPoolExecutor(16) as threads:
            scores = list(threads.map(lambda one: self.score(one[0], one[1]), tries))
        return calibrate(scores, [good for _, _, good in tries], bar, level, [task.family for task, _, _ in tries])

    def close(self) -> None:
        """Give the model's memory back; the next call loads it again."""
        with self._lock:
            scorer, self._scorer = self._scorer, None
        if scorer is not None:
            atexit.unregister(self.close)
            scorer.close()

    def _score(self, task: Task, trajectory: Trajectory) -> tuple[float, int]:
        asked, did = parts(task, trajectory)
        logits, left_out = self._opened().logits((*asked, *did), trajectory.tools)
        at = self._at
        if at is None:
            at = _label(None, [str(number) for number in range(len(logits))], self.settings.model)
        if at >= len(logits):
            raise SettingsError(f"label is {at}, but {self.settings.model} has {len(logits)} labels, from 0")
        if not all(map(math.isfinite, logits)):
            raise PolicyError(f"the reward model's score is not finite: {', '.join(f'{number:g}' for number in logits[:4])}")
        if len(logits) == 1:
            return logits[0], left_out
        if self._multiple:
            return 0.5 * (1 + math.tanh(logits[at] / 2)), left_out  # the logistic function, which overflows nowhere so
        odds = [math.exp(logit - max(logits)) for logit in logits]
        return odds[at] / sum(odds), left_out

    def _opened(self) -> Scorer:
        with self._lock:
            if self._scorer is None:
                engine = self.settings.engine
                if isinstance(engine, Pooling):
                    self._scorer = PoolingScorer(self.settings.model, engine, lambda: self._charged)
                else:
                    assert self._model is not None
                    self._scorer = ClassifierScorer(self._model, engine)
                atexit.register(self.close)
            return self._scorer


def _label(label: str | int | None, names: Sequence[str], model: str) -> int:
    """The place of the label that means good. SettingsError where it is not said, or there is none such."""
    shown = ", ".join(f"{at}: {name}" for at, name in enumerate(names[:10]))
    if label is None:
        if len(names) != 1:
            raise SettingsError(f"{model} has {len(names)} labels ({shown}); set label to the one that means good")
        return 0
    if isinstance(label, str):
        if label not in names:
            raise SettingsError(f"{model} has no label {label!r}{nearest(label, names)}")
        return names.index(label)
    if not 0 <= label < len(names):
        raise SettingsError(f"label is {label}, but {model} has {len(names)} ({shown})")
    return label
