"""Keeps tests/unit/shipped.json: the modules that wheels of the curated table's distributions really ship.

`shipped.py FOLDER…` reads the wheels in folders and rewrites the file; fill one with `pip download --no-deps`.
`shipped.py --sample 3` lets pip fetch three of the distributions, others every day, and fails unless what the
index has today still ships what the table says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name, parse_wheel_filename

from ptc_worker.dependencies import import_table

if TYPE_CHECKING:
    from collections.abc import Collection

SNAPSHOT = Path(__file__).with_name("unit") / "shipped.json"
_CODE = (".py", ".so")


def modules_of(files: list[str]) -> list[str]:
    """List what can be imported by the files of a wheel: top-level modules, or what lies in a namespace.

    A folder without `__init__.py` is a namespace, to which other distributions may add: `google` is none's own.
    """
    code = {_installed(PurePosixPath(name)) for name in files if name.endswith(_CODE)}
    packages = {path.parent for path in code if path.name.partition(".")[0] == "__init__"}
    found = set()
    for path in code:
        above = [folder for folder in reversed(path.parents) if folder in packages]
        module = above[0] if above else path.with_name(path.name.partition(".")[0])
        if all(part.isidentifier() and not part.startswith("_") for part in module.parts):
            found.add(".".join(module.parts))
    return sorted(found - {""})


def _installed(path: PurePosixPath) -> PurePosixPath:
    """Tell where in site-packages a file of a wheel comes to lie."""
    in_data = path.parts[0].endswith(".data") and path.parts[1:2] in {("purelib",), ("platlib",)}
    return PurePosixPath(*path.parts[2:]) if in_data else path


def read_wheels(folders: list[Path]) -> dict[str, dict[str, object]]:
    """Read the newest wheel of each of the table's distributions."""
    wanted = {canonicalize_name(name) for name in import_table().values()}
    newest: dict[str, tuple[object, Path]] = {}
    for path in (path for folder in folders for path in folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        if name in wanted and (name not in newest or version > newest[name][0]):  # type: ignore[operator]
            newest[name] = version, path
    return {
        name: {"version": str(version), "modules": modules_of(zipfile.ZipFile(path).namelist())}
        for name, (version, path) in newest.items()
    }


def missing(shipped: dict[str, dict[str, object]], names: Collection[str]) -> list[str]:
    """Say what the table promises of these distributions and their wheels do not hold."""
    told = []
    for module, distribution in import_table().items():
        name = canonicalize_name(distribution)
        if name not in names:
            continue
        if name not in shipped:
            told.append(f"{distribution}: no wheel")
        elif module not in shipped[name]["modules"]:  # type: ignore[operator]
            told.append(f"{distribution} {shipped[name]['version']} does not ship {module}")
    return told


def rewrite(folders: list[Path]) -> list[str]:
    """Renew the snapshot, keeping what is known of distributions without a wheel in the folders."""
    wanted = {canonicalize_name(name) for name in import_table().values()}
    known = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    shipped = {name: facts for name, facts in (known | read_wheels(folders)).items() if name in wanted}
    lines = (f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in sorted(shipped.items()))
    SNAPSHOT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return missing(shipped, wanted)


def sample(size: int) -> list[str]:
    """Compare a few distributions with the index; which ones depends on the day."""
    names = sorted({canonicalize_name(name) for name in import_table().values()})
    start = datetime.now(UTC).toordinal() * size
    chosen = {names[(start + number) % len(names)] for number in range(size)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, *sorted(chosen)], check=True)
        shipped = read_wheels([Path(folder)])
    print(
        "compared with the index:", *(f"{name} {facts['version']}" for name, facts in sorted(shipped.items()))
    )
    return missing(shipped, chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--sample", type=int)
    options = parser.parse_args()
    sys.exit("\n".join(sample(options.sample) if options.sample else rewrite(options.folders)) or None)
