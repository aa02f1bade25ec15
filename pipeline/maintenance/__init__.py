"""Caring for a cache: what it holds, whether it still holds, mending, dropping, copying."""
