"""Rows and arrays by position."""
