"""The former location of the pytest plugin, which is now `netparity.pytest_plugin`."""

from netparity.pytest_plugin import (
    parity,
    pytest_addoption,
    pytest_configure,
    pytest_itemcollected,
    pytest_terminal_summary,
)

__all__ = ["parity", "pytest_addoption", "pytest_configure", "pytest_itemcollected", "pytest_terminal_summary"]
