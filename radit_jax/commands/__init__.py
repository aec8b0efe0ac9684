"""The commands of `radit` that have no `python -m radit_jax.…` of their own, a module each."""
