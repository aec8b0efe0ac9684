"""What stages share of a language model: training, scoring and answering."""
