"""All benchmarks, or those that are named: `python -m benchmarks [NAMES]`.

Each leaves its record in `benchmarks/results/NAME.json`; the tables of `docs/performance.md` are made of the
records that are there, and `--tables` makes them again without measuring anything. `--check` takes three
minutes, and tells by its exit code whether a path has become slower (`benchmarks/check.py`).

    pip install -c constraints.txt -e '.[bench]'
    python -m venv .venv-fed-rag && .venv-fed-rag/bin/pip install -r benchmarks/fed_rag.txt     (optional)

`RADIT_DATA` names a folder with `wiki/` (`radit_jax/data/sources/folder.py` has its form) and
`tokenizers/llama_tokenizer.model`; without it the inputs are generated. `RADIT_LM` names a trained language
model, `export/hf/lm` of a run, that `answering` asks.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import check, compare, tables

# Each is a module with a BENCHMARK; where nothing is compared, it has its own `run` and `section` instead.
NAMES = (
    "scoring",
    "lm_ft",
    "r_ft",
    "quality",
    "embedding",
    "search",
    "answering",
    "serving",
    "size",
    "roofline",
)
RESULTS = pathlib.Path(__file__).parent / "results"
PERFORMANCE = compare.ROOT / "docs" / "performance.md"


def main() -> None:
    """Measure the benchmarks that are named, write their records, and make their tables."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of each worker (default: 5)")
    parser.add_argument("--cores", type=int, default=0, help="how many to be pinned to (default: all)")
    parser.add_argument("--cache", default="runs/benchmarks", help="inputs, weights and logs")
    parser.add_argument("--only", nargs="*", default=[], help="workers to measure; nothing is recorded")
    parser.add_argument("--tables", action="store_true", help="measure nothing, only write the tables")
    parser.add_argument("--check", action="store_true", help="compare a few small paths with their record")
    parser.add_argument("--record", action="store_true", help="with --check: make this the record")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"expected benchmarks of {', '.join(NAMES)}, got {', '.join(unknown)}")
    if options.cores:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: options.cores])

    RESULTS.mkdir(exist_ok=True)
    cache = pathlib.Path(options.cache)
    if options.check:
        sys.exit(check.run(cache, record=options.record))
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
            page = tables.replaced(PERFORMANCE.read_text(), name, text)
            PERFORMANCE.write_text(page)


def _measure(name: str, cache: pathlib.Path, rounds: int, only: Sequence[str]) -> dict[str, Any]:
    """The record of one benchmark."""
    module = importlib.import_module(f"benchmarks.{name}")
    if hasattr(module, "BENCHMARK"):
        return compare.run(module.BENCHMARK, cache, rounds, only)
    return module.run(cache, rounds)


def _section(name: str, record: Mapping[str, Any]) -> str:
    """The section of a record in `docs/performance.md`."""
    module = importlib.import_module(f"benchmarks.{name}")
    if hasattr(module, "BENCHMARK"):
        return tables.section(module.BENCHMARK, record)
    return module.section(record)


if __name__ == "__main__":
    sys.exit(main())
