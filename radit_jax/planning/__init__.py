"""What each stage takes of a machine that is not present: memory, time and disk."""
