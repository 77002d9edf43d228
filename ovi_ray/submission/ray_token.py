"""The token of a Ray cluster (Ray 2.60): where it is looked for, and how it is sent."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from requests import PreparedRequest
from requests.auth import AuthBase

from ovi_ray.errors import ClusterError

_FORM = re.compile(r"[!-~]+")
_OTHERS = 0o077  # permission bits
_EXPECTED = "a file that holds the token of the cluster's head, one word, and that you alone may read"
_logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class Token(AuthBase):
    """A token. It is sent whatever ~/.netrc says of the host, which `requests` would prefer to a header."""

    value: str = field(repr=False)
    source: str
    """The variable or file that it comes from."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Add it to a request."""
        request.headers["Authorization"] = f"Bearer {self.value}"
        return request


def find_token(path: Path | None) -> Token | None:
    """The token in a file, or where Ray looks for one; None where there is none. Raises ClusterError for what is no token."""
    if path is None and (value := os.environ.get("RAY_AUTH_TOKEN", "").strip()):
        return _checked(value, "RAY_AUTH_TOKEN")
    named = path or os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named or "~/.ray/auth_token").expanduser()
    try:
        value = file.read_text(encoding="utf-8").strip()
        is_shared = os.name == "posix" and bool(file.stat().st_mode & _OTHERS)
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise ClusterError(
            f"the token file {file} cannot be read: {error.strerror or error}; expected {_EXPECTED}"
        ) from None
    except UnicodeDecodeError:
        raise ClusterError(f"the token file {file} holds bytes that are not text; expected {_EXPECTED}") from None
    if not value and named is None:
        return None
    if is_shared:
        _logger.warning("the token in %s can be read by other users: chmod 600 %s", file, file)
    return _checked(value, str(file))


def _checked(value: str, source: str) -> Token:
    """Raises ClusterError, which does not quote it, for a value that cannot be sent."""
    if _FORM.fullmatch(value):
        return Token(value=value, source=source)
    found = "holds a value with spaces, line breaks or letters beyond ASCII" if value else "is empty"
    raise ClusterError(f"{source} {found}; expected the token of the cluster's head, which is one word")
