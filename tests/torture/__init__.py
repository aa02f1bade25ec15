"""Torture: the real command killed again and again, bits flipped all over a store; `python -m tests.torture`."""
