"""Write a run as one HTML page: `python -m radit_jax.report --workdir=runs/tiny` writes its report.html."""

import argparse
from collections.abc import Sequence

from radit_jax.command_line import module_parser
from radit_jax.errors import exit_command, parse_and_run
from radit_jax.report.writing import write_comparison, write_report
from radit_jax.runtime.storage.runs_folder import default_workdir


def parser() -> argparse.ArgumentParser:
    """The command line of `report`."""
    p = module_parser("report", __doc__, print_report)
    which = p.add_mutually_exclusive_group()
    which.add_argument(
        "--workdir", metavar="FOLDER", help="of a run, gs:// or s3:// too (default: the only one in runs/)"
    )
    which.add_argument("--compare", nargs="+", metavar="FOLDER", help="of runs, to set them side by side")
    p.add_argument("--scratch", metavar="FOLDER", help="for copies of a bucket; default: ~/.cache/radit_jax")
    p.add_argument(
        "--output", metavar="FILE", help="default: report.html in the workdir; comparison.html here"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def print_report(options: argparse.Namespace) -> None:
    """Write the page that the command line asks for, and print where it is."""
    if options.compare:
        path = write_comparison(options.compare, options.scratch, options.output)
        print(f"comparison: {path}")
        return
    path = write_report(options.workdir or default_workdir(), options.scratch, options.output)
    print(f"report: {path}")


if __name__ == "__main__":
    exit_command(main)
