"""A report as one HTML page that needs no network: `page.py` fills in the `templates`, and escapes every value."""

from compare.report.html.page import several_to_html, to_html

__all__ = ["several_to_html", "to_html"]
