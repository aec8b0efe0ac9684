"""Others' checkpoints and tokenisers in, ours out."""
