"""The tasks of the evaluation: their official files, splits, metrics and scoring rules."""
