"""`python -m radit_jax` is `radit`, where the script is not on the path."""

from radit_jax.cli import console

if __name__ == "__main__":
    console()
