"""The inputs, random draws and results of one step."""
