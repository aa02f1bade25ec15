"""What a codec must know about a teacher's features before the first shard is written."""
