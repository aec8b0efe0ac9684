"""What stages leave for each other: the corpus, the retrieved chunks, the LSR scores."""
