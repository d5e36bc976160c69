"""Writes the table in docs/sandbox.md from the attacks that the tests try: python scripts/attack_docs.py [--check]. A test checks it."""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from attacks import ATTACKS, FIELD, HARMS, SETUPS, VERDICT, Attack  # noqa: E402

PAGE = ROOT / "docs" / "sandbox.md"
BEGIN, END = "<!-- written by scripts/attack_docs.py -->", "<!-- end -->"
GETS = {"pass": "passes", "broken": "no verdict", "harm": "harm", "": "not shown"}


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def outside(attack: Attack) -> str:
    where = attack.why or {**SETUPS, **HARMS}[attack.outside]
    return f"{where}; {attack.given}" if attack.given else where


def table() -> Iterator[str]:
    yield row("attack", "from", "with a naive grader", "which, or what harm", "in the sandbox")
    yield "|" + " --- |" * 5
    for name, attack in ATTACKS.items():
        yield row(name.replace("__", "\\_\\_"), "the field" if name in FIELD else "ours", GETS[attack.gets], outside(attack), VERDICT)


def page(now: str) -> str:
    before, rest = now.split(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(table()) + f"\n{END}{rest.split(END)[1]}"


now = PAGE.read_text()
if sys.argv[1:] == ["--check"]:
    sys.exit(0 if now == page(now) else "docs/sandbox.md is not what the tests try; run python scripts/attack_docs.py")
PAGE.write_text(page(now))
