"""Public reports of ports that went wrong, written again as small pairs."""

from reported.common import Report, check
from reported.models import MODELS
from reported.optimizers import OPTIMIZERS

REPORTS = (*OPTIMIZERS, *MODELS)

__all__ = ["REPORTS", "Report", "check"]
