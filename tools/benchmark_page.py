#!/usr/bin/env python
"""
Repeats BENCHMARKS.md: runs every command of its ```sh blocks, one after the other.

    python tools/benchmark_page.py --output output/benchmark          # `make benchmark`

What each prints lies beside the command in OUTPUT/page.md, the rows of models also in csv files
that are named by processor, threads and torch, and pictures where a command draws them. The machine
should do nothing else meanwhile.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(page: str) -> list[str]:
    """Each command of the ```sh blocks as one line, without its comment."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "benchmark")
    parser.add_argument("--only", default="", help="of the commands those that have these words")
    parser.add_argument("--page", type=Path, default=ROOT / "BENCHMARKS.md")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    failed = []
    with (args.output / "page.md").open("w") as page:
        for command in commands(args.page.read_text(encoding="utf-8")):
            if args.only not in command:
                continue
            print(command, flush=True)
            words = shlex.split(command)
            start = words.index("python")  # settings of the environment may stand before it
            environment = dict(word.split("=", 1) for word in words[:start])
            words = [word.replace("output/benchmark", str(args.output)) for word in words[start:]]
            done = subprocess.run(
                [sys.executable, *words[1:]],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            page.write(f"```sh\n{command}\n```\n\n{done.stdout}\n")
            page.flush()
            if done.returncode:
                failed.append(command)
    print(f"{args.output / 'page.md'} is written")
    if failed:
        raise SystemExit("these failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
