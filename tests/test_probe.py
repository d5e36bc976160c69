"""The line that a machine without a working sandbox gets: what is missing, and the command that brings it. No box is needed to say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharpen.sandbox.box import advice, lacking


@pytest.mark.parametrize(
    ("system", "machine", "bwrap", "says"),
    [
        ("Linux", "x86_64", "/usr/bin/bwrap", ()),
        ("Linux", "aarch64", "/usr/bin/bwrap", ()),
        ("Linux", "x86_64", None, ("not installed: apt-get install bubblewrap", "dnf, pacman, apk: the same name")),
        ("Linux", "riscv64", "/usr/bin/bwrap", ("this machine is riscv64",)),
        (
            "Darwin",
            "arm64",
            None,
            ("this is macOS: run sharpen in docker", "docker run --security-opt", "bubblewrap installed in the image"),
        ),
        ("Windows", "AMD64", None, ("this is Windows: run sharpen in docker",)),
    ],
)
def test_what_a_machine_lacks_to_try_a_box(system: str, machine: str, bwrap: str | None, says: tuple[str, ...]) -> None:
    line = lacking(system, machine, bwrap)
    assert bool(line) == bool(says) and "\n" not in line
    for words in says:
        assert words in line


APPARMOR, CLONE, MOST = (
    "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "proc/sys/kernel/unprivileged_userns_clone",
    "proc/sys/user/max_user_namespaces",
)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {APPARMOR: "1\n"},
            "Ubuntu's AppArmor forbids user namespaces to bubblewrap: sudo apt-get install apparmor-profiles && sudo ln -s ",
        ),
        ({APPARMOR: "1\n", CLONE: "0\n", ".dockerenv": ""}, "Ubuntu's AppArmor"),  # the host's own word comes first
        ({APPARMOR: "0\n", CLONE: "0\n"}, "this kernel forbids user namespaces: sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        ({CLONE: "1\n", MOST: "0\n"}, "this kernel allows no user namespaces: sudo sysctl -w user.max_user_namespaces=15000"),
        (
            {CLONE: "1\n", MOST: "63000\n", ".dockerenv": ""},
            "this container forbids namespaces: start it with --security-opt seccomp=unconfined",
        ),
        ({"run/.containerenv": ""}, "this container forbids namespaces: start it with --security-opt seccomp=unconfined"),
        ({APPARMOR: "0\n", CLONE: "1\n", MOST: "63000\n"}, "try bwrap --ro-bind / / --unshare-all true"),
        ({}, "try bwrap --ro-bind / / --unshare-all true"),
    ],
)
def test_why_bubblewrap_fails_and_what_lets_it_work(files: dict[str, str], says: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    line = advice(tmp_path)
    assert says in line and "\n" not in line
