"""A comparison from end to end: weights mapped, runs started, followed and explained."""
