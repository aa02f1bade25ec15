"""Batches for training: order, read-ahead, ring of buffers."""
