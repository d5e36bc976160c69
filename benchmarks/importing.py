"""How fast trajectories come in, beside ``datasets`` reading the same file: ``python benchmarks/importing.py --rows 100000 --kilobytes 7``.

Writes a file of OpenAI rows with tool calls, then reads it in a process of its own each time: once with sharpen, once with datasets (a fresh
cache, every row touched). Prints rows/s, peak resident memory and the ratio. The aim: 100,000 trajectories of 7 KB under 1 GB of memory.

``--line 1024`` instead imports a file of one line of so many megabytes, which ``sharpen import`` must refuse in one line and in memory that does
not grow with it: prints what it said, its seconds and its peak. Files lie in a temporary folder (TMPDIR) and are deleted.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}


def write(path: Path, rows: int, kilobytes: float) -> None:
    """Rows of ten messages, four of them tool calls or results, all different."""
    with path.open("w") as file:
        for number in range(rows):
            text = (f"{number} the quick brown fox " * 400)[: int(kilobytes * 1024 / 8)]
            messages = [{"role": "system", "content": "Play."}, {"role": "user", "content": text}]
            for turn in range(2):
                call = {"id": f"c{turn}", "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": text[:40]})}}
                messages += [
                    {"role": "assistant", "content": text, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": f"c{turn}", "content": text},
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": "Go on."},
                ]
            file.write(json.dumps({"messages": [*messages, {"role": "assistant", "content": text}], "tools": [TOOL]}) + "\n")


def with_sharpen(path: Path) -> int:
    from sharpen.formats.load import read

    return sum(1 for _ in read(path, "openai"))


def with_datasets(path: Path) -> int:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        return sum(1 for _ in datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache))


def one(reader: str, path: Path) -> None:
    """In a process of its own: import, then read under the clock."""
    read = {"sharpen": with_sharpen, "datasets": with_datasets}[reader]
    __import__("sharpen.formats.load" if reader == "sharpen" else "datasets")
    started = time.perf_counter()
    rows = read(path)
    seconds = time.perf_counter() - started
    print(json.dumps({"rows": rows, "seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def one_line(megabytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line.jsonl"
        with path.open("wb") as file:
            file.write(b'{"messages": [{"role": "user", "content": "')
            for _ in range(megabytes):
                file.write(b"x" * 2**20)
            file.write(b'"}]}\n')
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "sharpen", "import", str(path), f"{folder}/work"], capture_output=True, text=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"one line of {megabytes:,} MB: exit status {done.returncode}, {seconds:.1f} s, peak {peak:,.0f} MB: {done.stderr.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kilobytes", type=float, default=7.0)
    parser.add_argument("--line", type=int, metavar="MEGABYTES")
    parser.add_argument("--one", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]))
        return
    if options.line:
        one_line(options.line)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, options.rows, options.kilobytes)
        print(
            f"{options.rows:,} rows, {path.stat().st_size / options.rows / 1024:.1f} KB each, Python {platform.python_version()}, {platform.machine()}"
        )
        speed = {}
        for reader in ("sharpen", "datasets"):
            command = [sys.executable, __file__, "--one", reader, str(path)]
            shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            assert shown["rows"] == options.rows
            speed[reader] = shown["rows"] / shown["seconds"]
            print(f"{reader:9} {speed[reader]:10,.0f} rows/s   peak {shown['mb']:,.0f} MB")
        print(f"ratio {speed['sharpen'] / speed['datasets']:.2f}")


if __name__ == "__main__":
    main()
