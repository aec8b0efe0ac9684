"""From examples to the arrays of a batch: packing, shared prefixes, order, few-shot prompts."""
