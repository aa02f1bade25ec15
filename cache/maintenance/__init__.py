"""Stores checked, mended, copied and made smaller."""
