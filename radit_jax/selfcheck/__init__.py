"""Proofs of the method on tiny models, against loops in float64."""
