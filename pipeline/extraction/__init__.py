"""Making a cache: samples become the source part, and the source part goes through each teacher once."""
