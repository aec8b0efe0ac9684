"""From questions to figures: the five systems, tasks, multiple choice."""
