"""Prompts, metrics, intervals, tables and model cards: text in, text or figures out."""
