"""The method from Python, on lists and arrays, without a workdir: what `radit_jax` itself offers by name."""
