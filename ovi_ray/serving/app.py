"""The web application of `ovi-ray serve`: the report, its files, what changes, and stars."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from ovi_ray.errors import InputError
from ovi_ray.output.picks import PICKS
from ovi_ray.output.progress_file import PROGRESS
from ovi_ray.output.result_row import VIDEOS
from ovi_ray.output.results import POSTERS, RESULTS
from ovi_ray.report.html import REPORT
from ovi_ray.serving.access import Access
from ovi_ray.serving.files import file_response
from ovi_ray.serving.stars import Stars
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location

FOLDERS = (VIDEOS, POSTERS, RESULTS)
"""Folders whose files are served."""
FILES = (PROGRESS, PICKS)
_NAME = re.compile(r"[\w-][\w.-]*")
_CLIP_ID = re.compile(r"[\w-]{1,128}")
_MAX_BODY_BYTES = 4096
_CLOSING_LOOK_S = 0.2
_NOT_YET = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3">'
    "<title>No report yet</title></head><body><p>The job has no report yet; this page looks again.</p></body></html>"
)
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@dataclass(kw_only=True, slots=True, frozen=True)
class LiveConfig:
    """Interval at which an open page learns of changes."""

    look_s: float = 2.0
    """Seconds between two looks at the output folder."""
    alive_s: float = 15.0
    """Seconds of silence after which something is sent, so that proxies keep the connection."""


def report_app(output_dir: Location, *, token: str, live: LiveConfig, is_closing: Callable[[], bool]) -> Starlette:
    """The application for an output folder, on a disk or in a store. A token is needed for all but loopback.

    Pages that are open are let go when the server `is_closing`.
    """
    site = _Site(output_dir, live, is_closing)
    return Starlette(
        routes=[
            Route("/", lambda request: RedirectResponse(REPORT)),
            Route(f"/{REPORT}", site.report),
            Route("/events", site.events),
            Route("/stars", site.stars, methods=["GET"]),
            Route("/stars", site.put_star, methods=["POST"]),
            *(Route(f"/{name}", site.file) for name in FILES),
            *(Route(f"/{folder}/{{name}}", site.file) for folder in FOLDERS),
        ],
        middleware=[Middleware(Access, token=token)],
    )


class _Site:
    """The answers to requests."""

    def __init__(self, output_dir: Location, live: LiveConfig, is_closing: Callable[[], bool]) -> None:
        self._output_dir = output_dir
        self._live = live
        self._is_closing = is_closing
        self._stars = Stars(output_dir=output_dir)
        self._saving = asyncio.Lock()

    async def report(self, request: Request) -> Response:
        """The report, told that a server is behind it."""
        try:
            page = await run_in_threadpool((self._output_dir / REPORT).read_bytes)
        except FileNotFoundError:
            return HTMLResponse(_NOT_YET, headers=_HEADERS)
        except OSError as error:
            return PlainTextResponse(f"{plain_reason(error)}\n", status_code=503)
        served = page.replace(b'<html lang="en">', b'<html lang="en" data-served>', 1)
        return HTMLResponse(served, headers={**_HEADERS, "cache-control": "no-store"})

    async def file(self, request: Request) -> Response:
        """A file of the output folder."""
        *folders, name = request.url.path.lstrip("/").split("/")
        if not _NAME.fullmatch(name):
            return PlainTextResponse("there is no such file\n", status_code=404)
        path = self._output_dir
        for part in (*folders, name):
            path /= part
        answer = await file_response(request, path)
        answer.headers.update(_HEADERS)
        return answer

    async def stars(self, request: Request) -> Response:
        """Ids of the starred clips."""
        return await _stars_response(self._stars.ids)

    async def put_star(self, request: Request) -> Response:
        """Save or remove a star."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return PlainTextResponse("expected application/json\n", status_code=415)
        body = await request.body()
        wanted = _star_in(body) if len(body) <= _MAX_BODY_BYTES else None
        if wanted is None:
            return PlainTextResponse('expected {"clip_id": "...", "starred": true or false}\n', status_code=400)
        clip_id, starred = wanted
        async with self._saving:
            return await _stars_response(lambda: self._stars.put(clip_id, starred=starred))

    async def events(self, request: Request) -> Response:
        """Server-sent events: `progress`, `report` and `stars`, each when it has changed."""
        return StreamingResponse(
            self._changes(), media_type="text/event-stream", headers={"cache-control": "no-store", **_HEADERS}
        )

    async def _changes(self) -> AsyncIterator[str]:
        seen: dict[str, object] = {REPORT: await run_in_threadpool(self._version, REPORT)}
        silent_s = 0.0
        yield ": connected\n\n"
        while not self._is_closing():
            sent = False
            for name, content in _WATCHED:
                version = await run_in_threadpool(self._version, name)
                if version is not None and seen.get(name) != version:
                    seen[name] = version
                    data = await run_in_threadpool(self._content, content)
                    sent = True
                    yield f"event: {_EVENT_OF[name]}\ndata: {data}\n\n"
            silent_s = 0.0 if sent else silent_s + self._live.look_s
            if silent_s >= self._live.alive_s:
                silent_s = 0.0
                yield ": alive\n\n"
            await self._pause()

    async def _pause(self) -> None:
        """Wait until the next look, or until the server closes."""
        until = time.monotonic() + self._live.look_s
        while time.monotonic() < until and not self._is_closing():
            await asyncio.sleep(min(self._live.look_s, _CLOSING_LOOK_S))

    def _version(self, name: str) -> object:
        """A value that changes with a file; None where there is none, or it cannot be read now."""
        try:
            stat = (self._output_dir / name).stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime

    def _content(self, read: "Callable[[_Site], object]") -> str:
        try:
            return json.dumps(read(self))
        except (OSError, ValueError, InputError):
            return "null"

    def read_progress(self) -> object:
        """The content of `progress.json`."""
        return json.loads((self._output_dir / PROGRESS).read_bytes())

    def read_stars(self) -> object:
        """Ids of the starred clips."""
        return self._stars.ids()


_WATCHED: tuple[tuple[str, Callable[[_Site], object]], ...] = (
    (PROGRESS, _Site.read_progress),
    (REPORT, lambda site: {}),
    (PICKS, _Site.read_stars),
)
_EVENT_OF = {PROGRESS: "progress", REPORT: "report", PICKS: "stars"}


async def _stars_response(ids: Callable[[], list[str]]) -> Response:
    """The stars, or why `picks.csv` cannot be read or written."""
    try:
        return JSONResponse(await run_in_threadpool(ids))
    except InputError as error:
        return PlainTextResponse(f"{error}\n", status_code=409)
    except OSError as error:
        return PlainTextResponse(f"{plain_reason(error)}\n", status_code=503)


def _star_in(body: bytes) -> tuple[str, bool] | None:
    try:
        given: Any = json.loads(body)
        clip_id, starred = given["clip_id"], given["starred"]
    except (ValueError, TypeError, KeyError):
        return None
    if not isinstance(clip_id, str) or not isinstance(starred, bool) or not _CLIP_ID.fullmatch(clip_id):
        return None
    return clip_id, starred
