"""Where a store's files lie: folders, buckets, and what a file system must promise."""
