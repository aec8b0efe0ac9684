"""Where data come from and the forms that they take: chunks, questions, examples, batches, tasks."""
