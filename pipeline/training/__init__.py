"""Training from caches: both stages, their loop, and what a run leaves behind."""
