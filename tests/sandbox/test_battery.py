"""The battery: every attack is contained and reported as what it was, and leaves nothing but its result."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandbox.attack import FINISHED, Attack, Scene
from sandbox.attacks.disk import DISK
from sandbox.attacks.files import FILES
from sandbox.attacks.kernel import KERNEL
from sandbox.attacks.network import NETWORK
from sandbox.attacks.processes import PROCESSES
from sandbox.attacks.reading import READING
from sandbox.attacks.reports import REPORTS
from sandbox.attacks.resources import BOMBS, RESOURCES
from sandbox.host import NAME, alive, assert_untouched, empty_groups
from sandbox.ways import ATTACKED
from support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sandbox.host import Host
    from sandbox.ways import Way

    from ptc_worker.sandbox.protocol import Sandbox

CLASSES = {
    "resources": RESOURCES,
    "bombs": BOMBS,
    "disk": DISK,
    "processes": PROCESSES,
    "reading": READING,
    "kernel": KERNEL,
    "files": FILES,
    "network": NETWORK,
}
LEAVING_NOTHING = {"resources", "processes", "reading", "kernel", "network"}
"""Classes whose attacks share one sandbox: it is to be as good as new after each."""
LEAST_CASES = 80
PATH = "/usr/bin:/bin"
START = "import sys\nsys.path.insert(0, '.')\nfrom foothold import *\n"

FOOTHOLD = Path(__file__).with_name("foothold.py").read_bytes()


@pytest.fixture(autouse=True)
def case(way: Way, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Count each attack with its class."""
    kind = request.node.callspec.params.get("kind")
    if kind:
        record_property("case", ("battery", str(way), kind))


class SharedBoxes:
    """A sandbox for all attacks of a class that leave no files: many are tried, in commands of their own."""

    def __init__(self, opening: Callable[[], AbstractContextManager[Sandbox]]) -> None:
        self._opening = opening
        self._open: dict[str, ExitStack] = {}
        self._boxes: dict[str, Sandbox] = {}

    @contextmanager
    def of(self, kind: str) -> Iterator[Sandbox]:
        """Lend the one of a class; an attack that had its way does not spoil it for the next."""
        if kind not in self._boxes:
            self._open[kind] = ExitStack()
            self._boxes[kind] = self._open[kind].enter_context(self._opening())
        try:
            yield self._boxes[kind]
        except BaseException:
            self.close(kind)
            raise

    def close(self, *kinds: str) -> None:
        """Destroy those of some classes, or all."""
        for kind in kinds or tuple(self._boxes):
            del self._boxes[kind]
            self._open.pop(kind).close()


@pytest.fixture(scope="session")
def shared(way: Way, cache_dir: Path) -> Iterator[SharedBoxes]:
    """Sandboxes of each kind that many attacks use, one after another."""
    boxes = SharedBoxes(lambda: way.open(cache_dir))
    yield boxes
    boxes.close()

    left = empty_groups()
    for _ in range(5):  # one that was just being prepared holds its sandbox, or was used, by then
        with way.open(cache_dir):
            left &= empty_groups()
    assert left == set()


@pytest.mark.parametrize("way", ATTACKED, ids=str, indirect=True)
@pytest.mark.parametrize(
    ("kind", "attack"),
    [
        pytest.param(kind, attack, id=f"{kind}: {attack.name}")
        for kind, attacks in CLASSES.items()
        for attack in attacks
    ],
)
def test_an_attack_is_contained(
    way: Way,
    host: Host,
    kind: str,
    attack: Attack,
    marker: str,
    cache_dir: Path,
    shared: SharedBoxes,
) -> None:
    """It gains nothing, it is reported as what it was, and when its result is there, all of it is over."""
    program = START + attack.program + f"\nprint({FINISHED!r})"
    with shared.of(kind) if kind in LEAVING_NOTHING else way.open(cache_dir) as box:
        if kind not in LEAVING_NOTHING:
            assert_clean(box)
        root = Path(box.root)
        box.write({"foothold.py": FOOTHOLD, "attack.py": program.encode()})
        ran = box.exec(
            way.program(box.tools.python, "attack.py"),
            env={"PATH": PATH, "ATTACK": marker, "ATTACK_TARGET": host.told(image=way.image)},
            cwd=".",
            timeout=attack.seconds,
        )

        assert alive(marker) == []
        attack.holds(Scene(box, way, host, ran))
    assert kind in LEAVING_NOTHING or not root.exists()
    assert_untouched(host, way)


def assert_clean(box: Sandbox) -> None:
    """Nothing of an attack before is in this sandbox."""
    script = f"find . .. /tmp /dev/shm /var/tmp -xdev -name '*{NAME}*' 2>/dev/null; ls; echo clean"
    ran = box.exec(["/bin/sh", "-c", script], env={"PATH": PATH}, cwd=".", timeout=PATIENCE_SECONDS)

    assert (ran.exit_code, ran.stdout) == (0, b"clean\n")


def test_the_battery_is_large_enough(way: Way) -> None:
    """A wall is as good as what was thrown at it."""
    assert str(way)
    assert sum(map(len, CLASSES.values())) + len(REPORTS) >= LEAST_CASES
    assert len({attack.name for attacks in CLASSES.values() for attack in attacks}) == sum(
        map(len, CLASSES.values())
    )
