"""What lies on disk: spec, layout, manifest and parts of a store."""
