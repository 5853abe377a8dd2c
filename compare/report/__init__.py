"""What was found, as text, page, Markdown, JSON, JUnit XML and figures."""
