"""Exact resume: whole checkpoints, the state of every rank, correct loop counters, and an orderly Ctrl-C."""
