"""What one step takes, draws and shows."""
