"""A report as one self-contained HTML page: no network, light and dark, by mouse and by keyboard."""

from compare.report.html.page import to_html

__all__ = ["to_html"]
