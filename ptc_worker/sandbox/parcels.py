"""The packages that a vendor's machines lack, gathered here: nothing there needs a network or an index."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ptc_worker.environments import BASE_REQUIREMENTS, downloading, kept
from ptc_worker.installer import InstallError, Target, gather, resolve
from ptc_worker.node.installed import NEEDED, TRANSFORM, NodeMissingError, is_new_enough, start_options
from ptc_worker.sandbox.machine import Facts, Parcel
from ptc_worker.sandbox.protocol import IsolationRefusedError
from ptc_worker.sandbox.tools import plugins_among, plugins_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from ptc_worker.environments import Addition
    from ptc_worker.halt import Halt
    from ptc_worker.settings import WorkerSettings

_ARCHIVE, _ABOUT = "env.tar", "about.json"

_GLIBC = ((2, 17), (2, 28), *((2, minor) for minor in range(31, 41)))
"""The C libraries that uv can choose wheels for."""

_MACHINES = frozenset({"x86_64", "aarch64"})
"""The machines that it can do that for."""

_EPOCH = 315_532_800
"""The time of every file in a parcel, in seconds: 1980, the first that zip files can tell of."""

_LEVEL = 3
"""How hard it is compressed. 27 MiB of packages take 0.4 s and come to 30 %; 6 takes 1.0 s for 28 %, 1 takes 0.3 s for 32 %."""


@contextmanager
def parcel_for(
    settings: WorkerSettings,
    facts: Facts,
    requirements: Sequence[str],
    timeout: float,
    halt: Halt,
    *,
    addition: Addition | None = None,
    image: str,
) -> Iterator[Parcel]:
    """Give the parcel for machines of which these facts are known, gathered if need be; nobody removes it meanwhile.

    No index is asked where the machines have all that is needed. Packages that they have are taken as they are
    wherever the requirements allow it. `image` names what they are made from, for messages.

    Raises:
        InstallError: the set cannot be had; as CacheDirError if that is neither plan's nor draft's fault.
        NodeMissingError: there is to be an addition, and the machines have no Node for it.
        IsolationRefusedError: something is to be brought, and nothing can be for these machines.
        TimeoutError: gathering took longer than `timeout` seconds.
        HaltedError: the work must stop.
    """
    options = _node_options(facts, image) if addition else ()
    contents = _Contents(_Image(facts, image), [*BASE_REQUIREMENTS, *requirements], addition)
    if not contents.npm and (there := contents.image.meeting(contents.wanted)) is not None:
        yield Parcel(facts, None, contents.image.plugins(there), node_options=options)
        return
    with kept(settings, contents, timeout, halt) as folder:
        about = json.loads((folder / _ABOUT).read_text())
        archive = folder / _ARCHIVE if about["brings"] else None
        yield Parcel(facts, archive, tuple(about["plugins"]), bool(contents.npm), options)


def _node_options(facts: Facts, image: str) -> tuple[str, ...]:
    if facts.node is None:
        raise NodeMissingError(f"{NEEDED} in the sandbox, and {image} has none")
    if not is_new_enough(facts.node["version"]):
        raise NodeMissingError(f"{NEEDED} in the sandbox, and {image} has {facts.node['version']}")
    return start_options(transforms=TRANSFORM in facts.node["flags"])


@dataclass(frozen=True)
class _Image:
    """What machines are made from: what it has, and what can be brought to it."""

    facts: Facts
    name: str

    @property
    def there(self) -> dict[str, str]:
        """Versions of what is installed, by normalised name."""
        return {canonicalize_name(name): version for name, version in self.facts.packages.items()}

    @property
    def target(self) -> Target:
        """The Python and the machine to gather wheels for.

        Raises:
            IsolationRefusedError: there are none for it.
        """
        machine, (library, version) = self.facts.machine, self.facts.libc
        if machine not in _MACHINES or library != "glibc":
            raise self._refusal(f"{library or 'another C library'} on {machine}")
        usable = [known for known in _GLIBC if known <= tuple(map(int, version.split(".")[:2]))]
        if not usable:
            raise self._refusal(f"glibc {version}")
        return Target(self.facts.version, f"{machine}-manylinux_{usable[-1][0]}_{usable[-1][1]}")

    def _refusal(self, found: str) -> IsolationRefusedError:
        return IsolationRefusedError(
            f"{self.name} lacks packages that tests need, and has {found}: they can be brought only to glibc on "
            f"{' or '.join(sorted(_MACHINES))}. Name one that has them, or one with glibc such as python:3.12-slim"
        )

    def meeting(self, wanted: Sequence[Requirement]) -> set[str] | None:
        """Name the installed packages that meet requirements, and what they need in turn; None if any is missing."""
        there, environment = self.there, self._environment
        requires = {canonicalize_name(name): lines for name, lines in self.facts.requires.items()}
        left, met = [(each, frozenset({""})) for each in wanted], set()
        while left:
            requirement, extras = left.pop()
            if not _applies(requirement, environment, extras):
                continue
            name, own = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
            if requirement.url or not _allows(requirement, there.get(name)):
                return None
            if (name, own) not in met:
                met.add((name, own))
                try:
                    left += [(Requirement(line), own) for line in requires.get(name, ())]
                except InvalidRequirement:
                    return None
        return {name for name, _ in met}

    @property
    def _environment(self) -> dict[str, str]:
        """What markers ask for."""
        return {
            **default_environment(),
            "python_version": ".".join(self.facts.version.split(".")[:2]),
            "python_full_version": self.facts.version,
            "platform_machine": self.facts.machine,
        }

    def plugins(self, names: Collection[str]) -> tuple[str, ...]:
        """Name the pytest plugins of installed packages of these names."""
        own = {
            name: points for name, points in self.facts.plugins.items() if canonicalize_name(name) in names
        }
        return plugins_among(own)


def _applies(requirement: Requirement, environment: Mapping[str, str], extras: Collection[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras)


def _allows(requirement: Requirement, version: str | None) -> bool:
    try:
        return version is not None and requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


class _Contents:
    """A parcel, and what is to be known of it."""

    def __init__(self, image: _Image, requirements: Sequence[str], addition: Addition | None) -> None:
        try:
            self.wanted = [Requirement(text) for text in sorted(set(requirements))]
        except InvalidRequirement as error:
            raise InstallError(str(error)) from None
        self.image = image
        self.npm = addition if addition and addition.packages else None

    @property
    def recipe(self) -> list[object]:
        """What its files follow from."""
        facts = self.image.facts
        machine = [facts.version, facts.machine, facts.libc, sorted(self.image.there.items())]
        return ["parcel", machine, [*map(str, self.wanted)], self.npm.recipe if self.npm else None]

    @property
    def told(self) -> dict[str, object]:
        """What is asked for."""
        added = {"addition": self.npm.recipe} if self.npm else {}
        return {"packages": [*map(str, self.wanted)], "image": self.image.name, **added}

    def build(self, cache_dir: Path, folder: Path, deadline: float, halt: Halt) -> None:
        """Gather, pack, and note what is in it."""
        tree = folder / "tree"
        short = ".".join(self.image.facts.version.split(".")[:2])
        site = tree / f"lib/python{short}/site-packages"
        site.mkdir(parents=True)
        used = self.image.meeting(self.wanted)
        if used is None:
            with downloading(cache_dir, "uv", deadline, halt):
                used = self._gathered(cache_dir, site, deadline, halt)
        if self.npm:
            with downloading(cache_dir, "npm", deadline, halt):
                self.npm.add_packages(cache_dir, tree, deadline, halt, self.image.facts.machine)
        brings = bool(self.npm) or any(site.iterdir())
        if brings:
            _pack(tree, folder / _ARCHIVE, halt)
        plugins = [*self.image.plugins(used), *plugins_among(plugins_in([str(site)]))]
        (folder / _ABOUT).write_text(json.dumps({"brings": brings, "plugins": sorted(plugins)}))
        shutil.rmtree(tree)

    def _gathered(self, cache_dir: Path, site: Path, deadline: float, halt: Halt) -> set[str]:
        """Bring what the image has not, or in another version; name what it has of what is needed."""
        target, there = self.image.target, self.image.there
        preferred = [f"{name}=={version}" for name, version in there.items() if _is_version(version)]
        wanted = [*map(str, self.wanted)]
        found = [
            Requirement(line)
            for line in resolve(
                cache_dir, site, wanted, preferred, target=target, deadline=deadline, halt=halt
            )
        ]
        lacking = [
            each for each in found if each.url or not _allows(each, there.get(canonicalize_name(each.name)))
        ]
        if lacking:
            gather(cache_dir, site, [*map(str, lacking)], target=target, deadline=deadline, halt=halt)
        return {str(canonicalize_name(each.name)) for each in found if each not in lacking}


def _is_version(text: str) -> bool:
    try:
        return bool(Version(text))
    except InvalidVersion:
        return False


def _pack(tree: Path, archive: Path, halt: Halt) -> None:
    """Pack a tree, the same tree always into the same bytes."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(tree.rglob("*")):
            halt.check()
            tar.add(path, str(path.relative_to(tree)), recursive=False, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out of an entry what differs from worker to worker."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = _EPOCH
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
