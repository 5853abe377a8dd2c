"""Why two optimizers make different updates."""
