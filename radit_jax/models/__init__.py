"""The networks as pure functions of parameters and arrays: LLaMA, BERT, adapters, counts of operations."""
