"""What the studies of quality and of forgetting share: bases, methods, learning, measures, runs, statistics."""
