"""npm's registry on this machine, with packages of a test's own."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from support import served

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest


@contextmanager
def registry(patch: pytest.MonkeyPatch, **packages: dict[str, str]) -> Iterator[list[str]]:
    """Serve packages as npm's registry does: files by package; yield the paths that were asked for."""
    tarballs = {name: _tarball({"package.json": "{}", **files}) for name, files in packages.items()}
    asked: list[str] = []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.strip("/").removesuffix(".tgz")
            if name not in tarballs:
                self.send_error(404)
                return
            body = (
                tarballs[name]
                if self.path.endswith(".tgz")
                else _packument(name, tarballs[name], self._host())
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def _host(self) -> str:
            return f"http://{self.headers['Host']}"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server has it
            """Stay quiet."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Registry)) as server:
        patch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}/")
        yield asked


def _tarball(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(f"package/{path}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def _packument(name: str, tarball: bytes, host: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        facts = json.load(tar.extractfile("package/package.json") or io.StringIO("{}"))
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    dist = {"tarball": f"{host}/{name}.tgz", "integrity": integrity}
    version = {"name": name, "version": "1.0.0", **facts, "dist": dist}
    return json.dumps(
        {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    ).encode()
