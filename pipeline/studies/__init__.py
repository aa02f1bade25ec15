"""Comparing: arms, variations and seeds over the same caches, with their tables and pictures."""
