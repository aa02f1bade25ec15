"""What a data set and a teacher must offer."""
