"""Files of an output folder over HTTP, whole or in part: a player that seeks asks for ranges."""

import mimetypes
import re
from collections.abc import AsyncIterator
from email.utils import formatdate

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location

_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


async def file_response(request: Request, path: Location) -> Response:
    """The file, the part of it that was asked for, or why there is none."""
    try:
        stat = await run_in_threadpool(path.stat)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return PlainTextResponse("there is no such file\n", status_code=404)
    except OSError as error:
        return PlainTextResponse(f"{plain_reason(error)}\n", status_code=503)
    tag = f'"{stat.st_size:x}-{stat.st_mtime:.3f}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": tag,
        "last-modified": formatdate(stat.st_mtime, usegmt=True),
        "cache-control": "no-cache",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    part = _part(request, stat.st_size, tag)
    start, end = part or (0, stat.st_size)
    if part is not None and start == end:
        return Response(status_code=416, headers={**headers, "content-range": f"bytes */{stat.st_size}"})
    if part is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{stat.st_size}"
    headers["content-length"] = str(end - start)
    status = 200 if part is None else 206
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(_pieces(path, start, end), status_code=status, headers=headers, media_type=media_type)


def _part(request: Request, size: int, tag: str) -> tuple[int, int] | None:
    """(start, end) of the bytes asked for, alike where the file has none of them; None for the whole file.

    The whole file is also the answer to several ranges, to unknown units, and about a file that has changed (RFC 9110, 14.2).
    """
    asked = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if asked is None or request.headers.get("if-range", tag) != tag:
        return None
    first, last = asked[1], asked[2]
    if not first:
        return (max(0, size - int(last)), size) if last else None
    if last and int(last) < int(first):
        return None
    return min(int(first), size), min(int(last) + 1, size) if last else size


async def _pieces(path: Location, start: int, end: int) -> AsyncIterator[bytes]:
    while start < end:
        piece = await run_in_threadpool(path.read_range, start, min(_PIECE_BYTES, end - start))
        if not piece:
            return
        start += len(piece)
        yield piece
