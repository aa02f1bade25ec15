"""Taking a student away: predictions, exported folders, other runtimes, checkpoints of the authors' release."""
