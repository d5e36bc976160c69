"""Writes the table in docs/verifiers.md from what each verifier says of itself: python scripts/verifier_docs.py [--check]. A test checks it."""

import sys
from pathlib import Path

from sharpen.tasks.reasoning_gym import ReasoningGymScorer
from sharpen.verifiers.load import PROPERTIES

PAGE = Path(__file__).parent.parent / "docs" / "verifiers.md"
BEGIN, END = "<!-- written by scripts/verifier_docs.py -->", "<!-- end -->"
COLUMNS = ("verifier", "needs of the task", "exact", "same again", "cost", "gameable", "fail", "error")


def table() -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    kinds = {f"`{tag}`": properties for tag, properties in PROPERTIES.items()} | {"source `reasoning_gym`": ReasoningGymScorer.properties}
    for name, one in kinds.items():
        cells = (name, one.needs, one.exact, "yes" if one.deterministic else "no", one.cost, one.gameable, one.fails, one.errors)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def page(now: str) -> str:
    before, rest = now.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


now = PAGE.read_text()
if sys.argv[1:] == ["--check"]:
    sys.exit(
        0 if now == page(now) else "docs/verifiers.md is not what the verifiers say of themselves; run python scripts/verifier_docs.py"
    )
PAGE.write_text(page(now))
