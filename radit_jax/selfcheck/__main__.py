"""`python -m radit_jax.selfcheck` proves on random tiny models what implementations get wrong.

One line per property: what was measured, what it had to be, and what is proved. The equations are compared
with float64 loops over chunks and over tokens read one sequence at a time, their gradients with central
differences or closed forms. The device computes in float32, so a bound is several times what rounding was
seen to do; a mistake misses it a hundredfold. The exit status is 0 only if all properties hold.
"""

import argparse

from radit_jax.command_line import CommandParser
from radit_jax.errors import exit_command, run_command


def parser() -> argparse.ArgumentParser:
    """The command line: no options but --help."""
    return CommandParser("python -m radit_jax.selfcheck", description=(__doc__ or "").partition("\n")[0])


def command() -> int:
    """Refuse options, then prove everything."""
    parser().parse_args()
    return run_command(_prove_all)


def _prove_all() -> None:
    from radit_jax.selfcheck.proofs import main  # jax, which help does without

    main()


if __name__ == "__main__":
    exit_command(command)
