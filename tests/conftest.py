"""What several test files share: a whole ladder on the scripted fake, in seconds and without torch."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, settings

from sharpen.models import cache_folder
from sharpen.policies.scripted import scripted_model
from sharpen.run import climb
from sharpen.sandbox.box import probe
from sharpen.settings import load_settings

LADDER = {
    "seed": 3,
    "tasks": {
        "source": "reasoning_gym",
        "dataset": "chain_sum",
        "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "splits": {"demo": 12, "train": 40, "dev": 40, "test": 30},
        "seed": 7,
    },
    "sampling": {"n": 4, "max_tokens": 32},
    "evaluation": {"n": 4, "k": [1, 4], "max_tokens": 32},
    "selection": {"cap": 2},
    "ladder": {"rungs": ["few-shot", "sft", "rejection-sampling", "expert-iteration"], "rounds": 2},
}


# The same examples each time, however long they take.
settings.register_profile("same", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")
# What a terminal, a CI or a proxy says of itself is not for these tests: they read what is printed, and their servers are on loopback.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"):
    os.environ.pop(name, None)
try:
    cache_folder().mkdir(parents=True, exist_ok=True)
except (OSError, RuntimeError):  # a user without a home
    os.environ["SHARPEN_CACHE"] = tempfile.mkdtemp(prefix="sharpen-cache-")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A module of ``benchmarks/``, which is no package: they import each other by their bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def runs(pid: int) -> bool:
    """Whether a process runs. A dead one that nobody waits for does not: where the first process of a container reaps no orphans, they stay for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(what: Callable[[], object]) -> None:
    """Back when ``what`` holds. Ten minutes measure nothing; they are an end for a test that has failed."""
    end = time.monotonic() + 600
    while not what():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.005)


def later(seconds: float) -> None:
    """Sets the running loop's clock forward: what waits for less than ``seconds`` is over now, on a slow machine as on a fast one."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


def held_port() -> tuple[socket.socket, int]:
    """A port of loopback that refuses, and that nobody is given by chance, as long as the socket is open; a server of ours may listen there by its number."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held, held.getsockname()[1]


FEW = "{demo: 4, train: 12, dev: 12, test: 4}"  # tasks.splits, where nothing rests on how many there are

SYNC = os.fsync, os.fdatasync


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fast tests do not wait for the disk, since nothing here cuts the power; what is no open file is still refused."""
    os.fsync, os.fdatasync = SYNC if item.get_closest_marker("real") else (os.fstat, os.fstat)  # type: ignore[assignment]


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    """A settings file for a whole ladder, with a scripted base model that is right one time in five."""
    return _scripted(tmp_path)


def _scripted(folder: Path) -> Path:
    scripted_model(folder / "base", skill=0.2)
    path = folder / "ladder.yaml"
    path.write_text(yaml.safe_dump({**LADDER, "model": str(folder / "base")}))
    return path


class Ended(NamedTuple):
    """A run of the whole ladder that has ended, and the settings that it was made with."""

    settings: Path
    runs: Path

    @property
    def folder(self) -> Path:
        return self.runs / "ladder"


@pytest.fixture(scope="session")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Climbed once for all tests. Nobody changes it."""
    folder = tmp_path_factory.mktemp("climbed")
    made = Ended(_scripted(folder), folder / "runs")
    climb(load_settings(made.settings, {}), made.runs)
    return made


@pytest.fixture
def ended(climbed: Ended, tmp_path: Path) -> Ended:
    """A copy of it, to be changed and gone on with."""
    return climbed._replace(runs=Path(shutil.copytree(climbed.runs, tmp_path / "runs")))


@pytest.fixture(scope="session")
def sandbox() -> None:
    """For tests that need the sandbox: skipped where the machine has none, and failed where it must have one."""
    if missing := probe():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
