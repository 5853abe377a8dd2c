"""Applies a finding's fix to the user's own file: an edit of its syntax tree, shown as a diff."""
