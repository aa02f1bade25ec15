"""Bytes on disk: specs, codecs, writer, reader, loader and verification of feature stores. Knows no model."""
