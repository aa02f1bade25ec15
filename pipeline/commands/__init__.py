"""The commands, one file a topic; heavy libraries are imported inside them, so that `sak --help` is quick."""
