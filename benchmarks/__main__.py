"""All benchmarks, or those that are named: `python -m benchmarks [NAMES]`.

Each leaves its record in `benchmarks/results/NAME.json`; the tables of `docs/performance.md` are made of the
records that are there, and `--tables` makes them again without measuring anything.

    pip install -c constraints.txt -e '.[bench]'
    python -m venv .venv-fed-rag && .venv-fed-rag/bin/pip install -r benchmarks/fed_rag.txt     (optional)

`RADIT_DATA` names a folder with `wiki/` (`radit_jax/data/sources/folder.py` has its form) and
`tokenizers/llama_tokenizer.model`; without it the inputs are generated.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import compare, tables

# Each is a module with a BENCHMARK; or, where nobody is compared, with `run` and `section` of its own.
NAMES = ("scoring", "lm_ft", "r_ft", "quality", "embedding", "search", "answering", "size", "roofline")
RESULTS = pathlib.Path(__file__).parent / "results"
PERFORMANCE = compare.ROOT / "docs" / "performance.md"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of each contestant (default: 5)")
    parser.add_argument("--cores", type=int, default=0, help="to be pinned to (default: all)")
    parser.add_argument("--cache", default="runs/benchmarks", help="inputs, weights and logs")
    parser.add_argument("--only", nargs="*", default=[], help="contestants; nothing is recorded")
    parser.add_argument("--tables", action="store_true", help="measure nothing, only write the tables")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    RESULTS.mkdir(exist_ok=True)
    cache = pathlib.Path(options.cache)
    for name in options.names or NAMES:
        path = RESULTS / f"{name}.json"
        if not options.tables:
            record = _measure(name, cache, options.rounds, options.only)
            print(_section(name, record))
            if options.only:
                continue
            path.write_text(json.dumps(record, indent=1) + "\n")
        if path.exists():
            text = _section(name, json.loads(path.read_text()))
            PERFORMANCE.write_text(tables.replaced(PERFORMANCE.read_text(), name, text))


def _measure(name: str, cache: pathlib.Path, rounds: int, only: Sequence[str]) -> dict[str, Any]:
    module = importlib.import_module(f"benchmarks.{name}")
    if hasattr(module, "BENCHMARK"):
        return compare.run(module.BENCHMARK, cache, rounds, only)
    return module.run(cache, rounds)


def _section(name: str, record: Mapping[str, Any]) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    return (
        tables.section(module.BENCHMARK, record) if hasattr(module, "BENCHMARK") else module.section(record)
    )


if __name__ == "__main__":
    sys.exit(main())
