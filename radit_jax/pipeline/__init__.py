"""The table of stages, their fingerprints, and the runner that makes what is missing."""
