"""Shards of the source part and of teachers: whole, durable, then committed."""
