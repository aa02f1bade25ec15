"""Linear heads on cached features: what a task loses when features come back from a codec."""
