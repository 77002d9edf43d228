"""Why storage failed, in plain words, and whether it is full or out of reach."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ovi_ray.errors import COMMAND_LINE, InputError, OutputError, Problem, StorageUnavailable, show_path
from ovi_ray.storage.paths import Location

PROBE_BYTES = 1 << 20
"""Size of the file that `write_problem` tries to write, about that of a small video: a nearly full disk must fail."""

_UNREACHABLE = ("no answer for", "error sending request", "Connection refused", "operation timed out", "timed out")
_ACCESS_DENIED = "access is denied: there are no credentials, or they do not allow it"
_BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "500 Internal", "502 Bad", "503 Service", "504 Gateway")
_REASONS = (
    (
        ("NoSuchBucket", "bucket does not exist", "The specified container does not exist"),
        "there is no such bucket: create it, or correct the name",
    ),
    (
        ("PermanentRedirect", "Received redirect without LOCATION", "AuthorizationHeaderMalformed", "301 Moved"),
        "the bucket is in another region: set AWS_DEFAULT_REGION, or put ?region=... after the URI",
    ),
    (
        ("169.254.169.254", "metadata.google.internal", "Missing credentials"),
        "the store asks for credentials, and there are none or they have expired",
    ),
    (
        _UNREACHABLE,
        "the store does not answer: is its address right (AWS_ENDPOINT_URL, or ?endpoint_override=... after the URI)?",
    ),
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "UnrecognizedClient"),
        "the store does not know these credentials",
    ),
    (
        ("ExpiredToken", "RequestExpired", "access token", "MissingAuthenticationToken", "401 Unauthorized"),
        "the store asks for credentials, and there are none or they have expired",
    ),
    (
        ("AccessDenied", "403 Forbidden", "lacked the necessary privileges", "Permission denied"),
        _ACCESS_DENIED,
    ),
    (("libjvm", "libhdfs"), "HDFS needs Java and Hadoop: set JAVA_HOME, HADOOP_HOME and CLASSPATH"),
)
"""Marks of an error in the text of a store or its client, and the reason in plain words; the first match counts."""

_STORAGE_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)


_GONE_ERRNOS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENODEV,
        errno.ENXIO,
        errno.EPERM,
        errno.EACCES,
        errno.EBUSY,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.EREMOTEIO,
        errno.ENOKEY,
        errno.EKEYEXPIRED,
        errno.EKEYREVOKED,
        errno.EKEYREJECTED,
    }
)
"""Further errors of a share that was unmounted, or whose ticket has expired. For an input they may concern one file only."""


def plain_reason(error: OSError) -> str:
    """The problem, and how to fix it where that is known; else what the system or the store says."""
    if error.strerror and error.__cause__ is None:
        return error.strerror
    text = _text(error)
    known = next((reason for marks, reason in _REASONS if any(mark in text for mark in marks)), None)
    return known or text.partition("\n")[0] or type(error).__name__


def reason_with_file(error: OSError) -> str:
    """The problem, with the file that it is about where the system names one."""
    return f"{error.filename}: {error.strerror}" if error.strerror and error.filename else error.strerror or str(error)


@contextmanager
def usable(folder: object, *, option: str = "", also_away: bool = False) -> Iterator[None]:
    """Raises OutputError for what the system says about a folder; of one to write to that an `option` names, InputError.

    A store that is away is told by its own error, which is another one for scripts, unless it is to be told so too.
    """
    try:
        yield
    except BrokenPipeError:  # of our own output
        raise
    except OSError as error:
        if isinstance(error, StorageUnavailable) and not also_away:
            raise
        if option:
            expected = f"a folder that can be written ({plain_reason(error)})"
            problem = Problem(file=COMMAND_LINE, field=option, value=show_path(folder), expected=expected)
            raise InputError([problem]) from None
        names_more = error.filename not in (None, str(folder)) or isinstance(error, StorageUnavailable)
        reason = reason_with_file(error) if names_more else plain_reason(error)
        raise OutputError(f"{folder} cannot be used: {reason}") from error


def is_unreachable(error: OSError) -> bool:
    """Whether the store as a whole cannot be reached now, rather than this one file."""
    return any(mark in _text(error) for mark in _UNREACHABLE)


def away_reason(path: Location) -> str:
    """Why the storage of a file is away as a whole; "" where it answers, whatever it says of the file itself.

    Asks the storage: on a disk for the folder of the file, in a store for the file.
    """
    local = path.parent.local_path
    try:
        if local is None:
            path.stat()
        else:
            with os.scandir(local) as entries:
                next(entries, None)
    except FileNotFoundError as error:
        return "" if local is None else f"{local}: {error.strerror}"
    except OSError as error:
        return "" if local is None and not _is_away(error) else f"{local or path.bucket}: {plain_reason(error)}"
    return ""


def _is_away(error: OSError) -> bool:
    """Whether what a store says is true of every file in it: it does not answer, or accepts nobody."""
    text = _text(error)
    return any(mark in text for mark in _BUSY) or any(
        mark in text for marks, reason in _REASONS if reason != _ACCESS_DENIED for mark in marks
    )


def output_error(error: BaseException | None) -> str:
    """Why the output failed, if the system or the store says so anywhere in the causes of an exception; "" otherwise."""
    while error is not None:
        if isinstance(error, StorageUnavailable):
            return str(error)
        number = getattr(error, "errno", None)
        if number in _STORAGE_ERRNOS or number in _GONE_ERRNOS:
            return str(error)
        error = error.__cause__ or error.__context__
    return ""


def storage_error(error: BaseException | None) -> str:
    """Why storage is full or out of reach, if that caused an exception; "" for any other exception."""
    while error is not None:
        if isinstance(error, StorageUnavailable):
            return str(error)
        number = getattr(error, "errno", None)
        if number in _STORAGE_ERRNOS:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


def write_problem(folder: Location) -> str:
    """Why nothing can be written into a folder now, found by trying; "" when it can."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


def _text(error: OSError) -> str:
    """The text of the store or its client, with details that `StorageUnavailable` leaves out; else the error's own text."""
    return str(error.__cause__ or "") or str(error)
