"""What a run is to do: recipes, arms, the caches they read."""
