"""A small world for demos and tests: rendered rooms and small teachers."""
