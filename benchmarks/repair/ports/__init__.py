"""Right ports: what is above FAULTS is the file that a user has; a fault exchanges some of its text."""
