"""Views: deterministic crops, flips and colour changes."""
