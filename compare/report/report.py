"""The report of one comparison: its findings, and their writers."""

from html import escape as escape_html
from typing import TYPE_CHECKING, Self

from compare.report.findings import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(Findings):
    """The outcome of one comparison: its `Findings`, with methods that write them."""

    def raise_on_mismatch(self) -> Self:
        """Return the report, or raise AssertionError with its text if the verdict is a mismatch."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def to_json(self) -> str:
        """The report as JSON, as `--json` writes it. docs/report.md describes the fields."""
        from compare.report.json import to_json

        return to_json([self])

    def to_html(self) -> str:
        """The report as one self-contained HTML page. docs/report.md describes it."""
        from compare.report.html.page import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """How a Jupyter notebook shows it: the page in a frame of its own, whose style stays there."""
        page = escape_html(self.to_html(), quote=True)
        title = escape_html(self.name)
        return f'<iframe srcdoc="{page}" style="width:100%;height:40rem;border:0" title="{title}"></iframe>'

    def to_markdown(self) -> str:
        """The report as Markdown, for a comment on a pull request or the summary of a CI job."""
        from compare.report.markdown import to_markdown

        return to_markdown(self)

    def plot(self) -> "Figure":
        """A matplotlib figure with the losses of both sides and their difference at each step."""
        from compare.report.plot import plot_reports

        return plot_reports([self])

    def __repr__(self) -> str:
        """One line: `<Report port: mismatch at step 0, forward, norm: epsilon>`."""
        return f"<Report {' '.join(f'{self.name}: {self.headline}'.split())}>"

    def __str__(self) -> str:
        """The table, and the first divergence with cause and fix."""
        from compare.report.text import to_text

        return to_text(self)
