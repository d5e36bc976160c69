"""A run's settings: one typed definition, read from YAML and from flags. Each part is declared beside what it sets; here they are only put together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import yaml

from sharpen.advisor import AdvisorSettings
from sharpen.agents.choose import Several, playing
from sharpen.agents.harness import Harness
from sharpen.agents.teacher import Teacher, in_words
from sharpen.errors import SettingsError, nearest
from sharpen.evaluation import EvaluationSettings
from sharpen.ladder import TAUGHT, LadderSettings
from sharpen.methods.base import Distillation, FewShot, Hints
from sharpen.policies.choose import Auto, Engine
from sharpen.policies.meter import Spending
from sharpen.records import Goal, Record
from sharpen.sampling import SamplingSettings
from sharpen.selection import SelectionSettings
from sharpen.tasks.load import TaskSource
from sharpen.tasks.recorded import Demonstrations
from sharpen.terms import TermsSettings
from sharpen.training.base import Training
from sharpen.training.preference import Preference


class RunSettings(Record, frozen=True, kw_only=True):
    """Everything that makes a run what it is. ``model`` is a packaged name, a folder or a hub id; ``seed`` drives every draw.

    ``template`` replaces the model's chat template: ``hermes`` (with tools) or a ``.jinja`` file; "" keeps the model's own.
    ``harness`` is an outside program that plays the tasks in the place of their environment. ``agent`` makes every try one of several, chosen
    (``best-of-n``, ``ensemble``); what trains is the model. ``demonstrations`` are recorded trajectories that
    demonstrate the demo split, in the place of the tasks' own expert. ``labels`` is the file, or folder of files, of what people say of trajectories; ""
    means ``labels/NAME.jsonl``. ``terms`` settle who outside the model's lineage may teach it: recorded trajectories, other models. ``teacher`` is whom
    the rung ``distillation`` copies, as the settings ``distillation`` say. ``goal`` is what is wanted of what ships, and ``advice`` the thresholds of
    ``sharpen advise``: both only advise.
    """

    name: str
    tasks: TaskSource
    model: str = "smollm2-135m-instruct"
    template: str = ""
    seed: int = 0
    harness: Harness | None = None
    agent: Several | None = None
    demonstrations: Demonstrations | None = None
    teacher: Teacher | None = None
    distillation: Distillation = Distillation()
    engine: Engine = Auto()
    sampling: SamplingSettings = SamplingSettings()
    selection: SelectionSettings = SelectionSettings()
    training: Training = Training()
    evaluation: EvaluationSettings = EvaluationSettings()
    few_shot: FewShot = FewShot()
    hints: Hints = Hints()
    preference: Preference = Preference()
    ladder: LadderSettings = LadderSettings()
    labels: str = ""
    terms: tuple[TermsSettings, ...] = ()
    spending: Spending = Spending()
    goal: Goal | None = None
    advice: AdvisorSettings = AdvisorSettings()

    def __post_init__(self) -> None:
        if self.teacher is None and "distillation" in self.ladder.rungs:
            raise SettingsError(
                "ladder.rungs holds distillation, but there is no teacher; set teacher: best-of-8, a model, a harness or recorded trajectories"
            )
        if self.teacher is not None and "distillation" not in self.ladder.rungs:
            raise SettingsError(
                "a teacher is set, but ladder.rungs lacks distillation, so nothing would ask it; add the rung, or take it out"
            )
        if self.ladder.demo_tries > self.evaluation.n:
            raise SettingsError(
                f"ladder.demo_tries is {self.ladder.demo_tries}, but tries are made as in evaluation, which makes {self.evaluation.n} of a task; "
                "lower it, or raise evaluation.n"
            )
        if self.goal is not None:
            if not 0 < self.goal.value <= 1:
                raise SettingsError(f"goal.value is {self.goal.value}, but must be over 0 and at most 1")
            if self.goal.metric not in (known := [f"pass@{k}" for k in self.evaluation.k]):
                raise SettingsError(f"goal.metric is {self.goal.metric!r}, which evaluation.k does not measure; it has {', '.join(known)}")
        sampled, evaluated = playing(self.agent, "sampling"), playing(self.agent, "evaluation")
        taught = self.teacher.agent if self.teacher is not None else None
        teaching = self.distillation.n if self.teacher is not None and self.teacher.recorded is None else 1
        if teaching > 1 and self.sampling.temperature == 0:
            raise SettingsError(
                f"sampling.temperature 0 gives the teacher the same try {teaching} times; set distillation.n: 1 or raise it"
            )
        asked = (("sampling", sampled, self.sampling), ("evaluation", evaluated, self.evaluation))
        for what, agent, how in (*asked, ("sampling", taught, self.sampling), ("evaluation", taught, self.evaluation)):
            if agent is not None and agent.n > 1 and how.temperature == 0:
                raise SettingsError(f"{what}.temperature 0 gives the agent the same try {agent.n} times; set agent.n: 1 or raise it")

    @property
    def labels_place(self) -> Path:
        return Path(self.labels or f"labels/{self.name}.jsonl")


def load_settings(path: Path, overrides: Mapping[str, str]) -> RunSettings:
    """Settings from a YAML file, with ``overrides`` such as ``{"sampling.n": "16"}``, whose values are YAML too.

    SettingsError, one line, for a file that is not there or not a mapping, an unknown key (with the nearest right one), a wrong type, a contradiction.
    """
    data = _yaml(path)
    if not isinstance(data, dict):
        raise SettingsError(f"{path} holds no settings; see examples/textworld/quickstart.yaml for what a run needs")
    data.setdefault("name", path.stem)
    for key, text in overrides.items():
        _put(data, key.split("."), _value(key, text))
    return convert(data, str(path))


def convert(data: Mapping[str, Any], where: str) -> RunSettings:
    """Typed settings from plain data. A tagged part may be given by its tag alone: ``engine: openvino``."""
    data = dict(data)
    if isinstance(taught := data.get("teacher"), str):
        data["teacher"] = in_words(taught)
    elif isinstance(taught, dict) and "" in taught:  # a word, and settings beside it
        data["teacher"] = in_words(str(taught[""])) | {key: value for key, value in taught.items() if key}
    ladder = data.get("ladder") or {}
    if taught is not None and isinstance(ladder, dict) and "rungs" not in ladder:
        data["ladder"] = ladder | {"rungs": list(TAUGHT)}
    try:
        return msgspec.convert(_spread(data, RunSettings, ""), RunSettings)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {_readable(str(error))}") from error


class _Unique(yaml.SafeLoader):
    """YAML in which a key that stands twice in one mapping is an error: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands there twice; delete one", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes().decode(), _Unique)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not text in UTF-8 (byte {error.start}); name a YAML file") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def load_terms(path: Path) -> tuple[TermsSettings, ...]:
    """The terms in a YAML file: a list of them, one alone, or under the key ``terms``. SettingsError, one line, as for ``load_settings``."""
    data = _yaml(path)
    data = data.get("terms", [data]) if isinstance(data, dict) else data
    if not isinstance(data, list) or not data:
        raise SettingsError(f"{path} holds no terms; write a list of them, each with teacher and licence")
    try:
        return msgspec.convert(_spread(data, tuple[TermsSettings, ...], "terms"), tuple[TermsSettings, ...])
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {_readable(str(error))}") from error


NO_PART = (
    "spending",
    "terms",
    "goal",
    "advice",
)  # of what a run is: caps and wishes may change, and permissions be renewed, while it lasts


def to_yaml(settings: RunSettings) -> str:
    """The resolved settings, every default written out, without ``NO_PART``. What trained keeps its terms (``Lineage``)."""
    data = msgspec.to_builtins(settings)
    for key in NO_PART:
        del data[key]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def resolved(text: str) -> str:
    """``to_yaml`` of settings that an earlier version wrote, with the defaults of what it did not know. The text itself where this one cannot read it."""
    try:
        data = yaml.safe_load(text)
        return to_yaml(convert(data, "")) if isinstance(data, dict) else text
    except (SettingsError, yaml.YAMLError):
        return text


def known_keys() -> dict[str, str]:
    """Every dotted key with its type and default, for ``sharpen run --help``."""
    return dict(_keys(RunSettings, ""))


def _put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = data.get(part)
        if isinstance(inner, str):
            inner = {"": inner}  # a tag given alone: _spread puts it under its field
        data[part] = inner = dict(inner) if isinstance(inner, dict) else {}
        data = inner
    data[path[-1]] = value


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--{key} {text}: not a value that YAML can read") from error


def _structs(hint: Any) -> list[type[msgspec.Struct]]:
    """The struct types in a type hint: one, or the members of a tagged union."""
    if get_origin(hint) is dict:
        return []
    options = get_args(hint) if get_origin(hint) is not None and not isinstance(hint, type) else (hint,)
    return [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]


def _spread(data: Any, hint: Any, place: str) -> Any:
    """Check keys against the types, with the nearest right key in the error, and spell out tags given alone."""
    if get_origin(hint) is dict and isinstance(data, dict):
        return {key: _spread(value, get_args(hint)[1], f"{place}.{key}") for key, value in data.items()}
    structs = _structs(hint)
    if get_origin(hint) is tuple and isinstance(data, list | tuple) and _structs(get_args(hint)[0]):
        return [_spread(item, get_args(hint)[0], f"{place}[{at}]") for at, item in enumerate(data)]
    if not structs:
        _check_choice(data, hint, place)
        return data
    tag_field = structs[0].__struct_config__.tag_field
    tags = {struct.__struct_config__.tag: struct for struct in structs}
    if tag_field is not None:
        if isinstance(data, str) and str in get_args(hint) and not (data in tags and tags[data].__struct_fields__):
            return data  # the name of a user's own, or a tag without settings to spell out
        if isinstance(data, str):
            data = {tag_field: data}
        elif isinstance(data, dict) and "" in data:
            data = {tag_field: data.pop(""), **data}
    if not isinstance(data, dict):
        return data
    chosen = structs[0]
    if tag_field is not None:
        tag = data.get(tag_field, next((t for t in tags if t == "auto"), None))
        if tag is None:
            raise SettingsError(f"{place or 'settings'} needs {tag_field!r}: one of {', '.join(map(str, tags))}")
        if tag not in tags:
            raise SettingsError(f"{place}.{tag_field} is {tag!r}{nearest(str(tag), map(str, tags))}")
        chosen, data = tags[tag], {tag_field: tag, **data}
    hints = _hints(chosen)
    result = {}
    for key, value in data.items():
        if key not in hints and key != tag_field:
            raise SettingsError(f"unknown setting {f'{place}.{key}'.lstrip('.')!r}{nearest(str(key), hints)}")
        result[key] = _spread(value, hints.get(key), f"{place}.{key}".lstrip("."))
    return result


def _check_choice(data: Any, hint: Any, place: str) -> None:
    """A word that is none of a Literal's, alone or in a list: msgspec names neither the place's choices nor the nearest one."""
    if get_origin(hint) is Literal:
        if data not in get_args(hint):
            raise SettingsError(f"{place} is {data!r}{nearest(str(data), map(str, get_args(hint)))}")
    elif get_origin(hint) is tuple and isinstance(data, list | tuple):
        for item in data:
            _check_choice(item, get_args(hint)[0], place)


@cache  # they are evaluated from text, and the same for every run
def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(struct)


def _keys(struct: type[msgspec.Struct], place: str) -> Iterator[tuple[str, str]]:
    for field in msgspec.structs.fields(struct):
        name = f"{place}.{field.name}".lstrip(".")
        hint = _hints(struct)[field.name]
        structs = _structs(hint) if get_origin(hint) is not tuple else []
        made = field.default_factory is not msgspec.NODEFAULT
        default = field.default_factory() if made else field.default
        if not structs:
            yield name, "required" if default is msgspec.NODEFAULT else repr(default)
        elif (tag_field := structs[0].__struct_config__.tag_field) is not None:
            kinds = ", ".join(str(inner.__struct_config__.tag) for inner in structs)
            given = (
                default.__struct_config__.tag
                if isinstance(default, msgspec.Struct)
                else "required"
                if default is msgspec.NODEFAULT
                else "none"
            )
            yield f"{name}.{tag_field}", f"{given}; one of {kinds}"
        for inner in structs:
            yield from _keys(inner, name)


def _readable(message: str) -> str:
    """msgspec's ``... - at `$.sampling.n```, with the place first."""
    found = re.search(r"^(.*?) - at `\$\.?(.*?)`$", message)
    return f"{found[2]}: {found[1]}" if found and found[2] else message
