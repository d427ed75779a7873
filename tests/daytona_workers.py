"""Workers whose tests run at the loopback Daytona."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from daytona_server import SNAPSHOT, DaytonaServer
from sandbox.ways import DISK_MB, MEMORY_MB, OPEN_SECONDS

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from daytona_faults import Fault


@contextmanager
def daytona(cache: Path, *faults: Fault, **options: Any) -> Iterator[DaytonaServer]:
    """Serve sandboxes that have what every environment has; options are those of `DaytonaServer`."""
    settings = WorkerSettings(
        ptc_cache_dir=cache, ptc_sandbox_memory_mb=MEMORY_MB, ptc_sandbox_disk_mb=DISK_MB
    )
    with (
        environment(settings, (), OPEN_SECONDS, Halt()) as image,
        DaytonaServer(settings, image, *faults, **options) as server,
    ):
        yield server


def there(environment: Mapping[str, str], server: DaytonaServer, **more: str) -> dict[str, str]:
    """Give a worker a key for it: that alone makes it the place where tests run."""
    return {
        **environment,
        "DAYTONA_API_KEY": server.key,
        "DAYTONA_API_URL": server.url,
        "PTC_DAYTONA_SNAPSHOT": SNAPSHOT,
        "PTC_SANDBOX_MEMORY_MB": str(MEMORY_MB),
        "PTC_SANDBOX_DISK_MB": str(DISK_MB),
        **more,
    }
