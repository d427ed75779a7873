"""The worker's application with leases that last no time at all, to see what leases are for."""

from ptc_contracts import work
from ptc_worker.app import app

work.LEASE_MS = 0

__all__ = ["app"]
