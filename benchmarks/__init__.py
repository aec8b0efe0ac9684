"""Benchmarks of radit_jax beside what its users would use instead."""
