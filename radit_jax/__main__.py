"""`python -m radit_jax` is `radit`, where the script is not on the path."""

from radit_jax.cli import main
from radit_jax.errors import exit_command

if __name__ == "__main__":
    exit_command(main)
