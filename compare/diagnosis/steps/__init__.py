"""Why two training steps differ: edits of the torch step that make it the step of the port."""
