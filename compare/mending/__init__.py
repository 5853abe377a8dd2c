"""What a finding's fix becomes in the user's own file: an edit of its syntax tree, shown as a diff."""
