"""The snapshots of the loopback Daytona: they are built in no time, and all of them are the one image that it has."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import web
from daytona_faults import Refusal, is_struck

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_BUILD_SECONDS = 0.1
_PAGE = 100


class Snapshots:
    """Those of the account, by name."""

    def __init__(self, first: str, beside: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Begin with one; `beside` lets something go on by itself."""
        self._beside = beside
        self._all: dict[str, dict[str, Any]] = {}
        self._add({"name": first, "imageName": "debian:12"}, state="active")

    def __getitem__(self, name_or_id: str) -> dict[str, Any]:
        """Find one.

        Raises:
            Refusal: there is none.
        """
        for snapshot in self._all.values():
            if name_or_id in {snapshot["id"], snapshot["name"]}:
                return snapshot
        raise Refusal(404, f"Snapshot {name_or_id} not found")

    def has(self, name_or_id: str) -> bool:
        """Tell whether sandboxes can be made from this one."""
        with suppress(Refusal):
            return bool(self[name_or_id]["state"] == "active")
        return False

    def _add(self, asked: dict[str, Any], *, state: str) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        built = {**asked.get("buildInfo", {}), "createdAt": now, "updatedAt": now, "snapshotRef": ""}
        snapshot = self._all[asked["name"]] = {
            "id": str(uuid4()),
            "organizationId": "org-of-tests",
            "general": False,
            "name": asked["name"],
            "imageName": asked.get("imageName", ""),
            "state": state,
            "size": None,
            "entrypoint": asked.get("entrypoint"),
            "cpu": asked.get("cpu", 1),
            "gpu": 0,
            "mem": asked.get("memory", 1),
            "disk": asked.get("disk", 3),
            "errorReason": None,
            "createdAt": now,
            "updatedAt": now,
            "lastUsedAt": None,
            "sourceSandboxId": None,
            **({"buildInfo": built} if "buildInfo" in asked else {}),
        }
        return snapshot

    async def create(self, request: web.Request) -> web.Response:
        """Begin to build one."""
        asked = await request.json()
        if asked["name"] in self._all:
            raise Refusal(409, f'Snapshot with name "{asked["name"]}" already exists')
        snapshot = self._add(asked, state="building" if "buildInfo" in asked else "pending")
        self._beside(self._build(snapshot, fails=is_struck(request, "error-state")))
        return web.json_response(snapshot)

    @staticmethod
    async def _build(snapshot: dict[str, Any], *, fails: bool) -> None:
        await asyncio.sleep(_BUILD_SECONDS)
        snapshot["state"] = "build_failed" if fails else "active"
        snapshot["errorReason"] = "the build failed" if fails else None

    async def get(self, request: web.Request) -> web.Response:
        """Show one."""
        return web.json_response(self[request.match_info["id"]])

    async def list(self, request: web.Request) -> web.Response:
        """Show a page of them."""
        page, limit = int(request.query.get("page", 1)), int(request.query.get("limit", _PAGE))
        total = len(self._all)
        items = [*self._all.values()][(page - 1) * limit : page * limit]
        return web.json_response(
            {"items": items, "total": total, "page": page, "totalPages": math.ceil(total / limit)}
        )

    async def delete(self, request: web.Request) -> web.Response:
        """Remove one."""
        del self._all[self[request.match_info["id"]]["name"]]
        return web.Response()

    async def build_logs_url(self, request: web.Request) -> web.Response:
        """Tell where the log of a build is."""
        self[request.match_info["id"]]
        return web.json_response({"url": str(request.url.origin() / "build-logs")})

    @staticmethod
    async def build_logs(_request: web.Request) -> web.Response:
        """Give the log of any build."""
        return web.Response(text="Step 1/1: built\n")
