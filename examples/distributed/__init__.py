"""Training over several processes and nodes."""
