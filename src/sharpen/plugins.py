"""A user's own code, found by name: ``module:name``, ``path/to/file.py:name``, or the name of an installed entry point."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sharpen.errors import SettingsError, SharpenError, nearest
from sharpen.records import Record

Kind = Literal["verifier", "tool", "environment", "expert", "task source", "policy"]
GROUPS: dict[Kind, str] = {
    "verifier": "sharpen.verifiers",
    "tool": "sharpen.tools",
    "environment": "sharpen.environments",
    "expert": "sharpen.experts",
    "task source": "sharpen.task_sources",
    "policy": "sharpen.policies",
}


class Plugin(Record, frozen=True, kw_only=True):
    """A maker and what it is told: ``name`` as ``load`` takes it, ``settings`` the keyword arguments that it is called with."""

    name: str
    settings: dict[str, Any] = {}


def make(plugin: Plugin, kind: Kind, *given: Any, protocol: Any, broken: type[SharpenError]) -> Any:
    """What the callable that ``plugin`` names makes of ``given`` and of its settings: something with every part of ``protocol``, a class.

    One line that names the plugin: SettingsError where it cannot be loaded, does not take its settings, says so itself, or returns something
    else; ``broken`` where it raises anything else.
    """
    function, where = load(plugin.name, kind), f"{kind} {plugin.name!r}"
    _check_settings(function, where, given, plugin.settings)
    try:
        made = function(*given, **plugin.settings)
        lacking = missing(made, protocol)
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, SharpenError) else f"raised {type(error).__name__}: {error}"
        raise (SettingsError if isinstance(error, SettingsError) else broken)(f"{where}: {' '.join(said.split())[:500]}") from error
    if lacking:
        raise SettingsError(f"{where} returned {type(made).__name__}, which is no {protocol.__name__}: it has no {lacking}")
    return made


def missing(thing: Any, protocol: Any) -> str:
    """The public parts of the class ``protocol`` that ``thing`` has not, with commas; "" where it has all."""
    return ", ".join(part for part in (*protocol.__annotations__, *vars(protocol)) if not part.startswith("_") and not hasattr(thing, part))


def _check_settings(function: Callable[..., Any], where: str, given: tuple[Any, ...], settings: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where} cannot be called: {error}") from None
    taken = list(signature.parameters.values())
    names = [one.name for one in taken[len(given) :] if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if not any(one.kind is one.VAR_KEYWORD for one in taken):
        for key in settings:
            if key not in names:
                raise SettingsError(f"{where} has no setting {key!r}{nearest(key, names) if names else '; it takes none'}")
    try:
        signature.bind(*given, **settings)
    except TypeError as error:
        raise SettingsError(f"{where}: {error}; it takes {signature}") from None


def load(spec: str, kind: Kind) -> Callable[..., Any]:
    """What ``spec`` names. Its module is imported, so its code runs.

    A name without a colon is looked up among the entry points of installed packages, in its group of ``GROUPS``. SettingsError,
    one line, where module, file or name is missing, does not import, or cannot be called.
    """
    where, colon, name = spec.rpartition(":")
    if not colon:
        return _entry_point(spec, kind)
    if not where or not name:
        raise SettingsError(f"{kind} {spec!r} is not module:name or file.py:name")
    try:
        module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # a script may call sys.exit
        raise SettingsError(f"{kind} {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise SettingsError(f"{kind} {spec!r}: {where} has no function {name!r}{nearest(name, own)}")
    return found  # type: ignore[no-any-return]  # callable() narrows to an object that can be called


def _entry_point(name: str, kind: Kind) -> Callable[..., Any]:
    group = GROUPS[kind]
    offered = {point.name: point for point in importlib.metadata.entry_points(group=group)}
    if name not in offered:
        others = nearest(name, offered) if offered else ""
        raise SettingsError(f"{kind} {name!r} is neither module:name, file.py:name nor an entry point in the group {group}{others}")
    try:
        found: Callable[..., Any] = offered[name].load()
    except (Exception, SystemExit) as error:
        raise SettingsError(f"{kind} {name!r} ({offered[name].value}) cannot be imported: {type(error).__name__}: {error}") from error
    return found


def _file(path: Path) -> Any:
    """The module of a file: one for all names in it, so that they share its state; loaded anew where the file has changed."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    return _module(path.resolve(), path.stat().st_mtime_ns)


@functools.cache
def _module(path: Path, changed: int) -> Any:
    name = f"_sharpen_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module
