"""Access to the server: for this machine, or with the token."""

import re
import secrets
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ovi_ray.serving.loopback import is_loopback

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]*)?")
COOKIE = "ovi_ray_token"


class Access:
    """Middleware. Without a token only names of loopback are answered, so that no web page reaches the server by another name.

    With one, every request needs it: as `?token=` of the first address, which sets a cookie, or as a bearer. Requests that
    change something must come from the server's own pages.
    """

    def __init__(self, app: ASGIApp, *, token: str = "") -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not passed on."""
        headers = Headers(scope=scope)
        if not self._token and not is_loopback(_host_name(headers)):
            return PlainTextResponse("this server answers to localhost only\n", status_code=421)
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != headers.get("host"):
            return PlainTextResponse("this request comes from another site\n", status_code=403)
        if not self._token:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if self._is_right(query.pop("token", [""])[0]):
            return self._welcome(scope, query)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_right(bearer) or self._is_right(_cookie(headers)):
            return None
        return PlainTextResponse("open the address with ?token= that `ovi-ray serve` has printed\n", status_code=401)

    def _welcome(self, scope: Scope, query: dict[str, list[str]]) -> Response:
        """Keep the token in a cookie, and take it out of the address."""
        rest = urlencode(query, doseq=True)
        answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), status_code=303)
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return answer

    def _is_right(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _host_name(headers: Headers) -> str:
    match = _HOST.fullmatch(headers.get("host", ""))
    return "" if match is None else match[1]


def _cookie(headers: Headers) -> str:
    found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    return "" if found is None else found.value
