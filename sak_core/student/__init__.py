"""The student: stem, adapter paths, routers, heads; as trained and as people load it."""
