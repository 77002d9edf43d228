"""Why a store failed, in plain words: what it says itself is a code that few know. Pure."""

import errno
import os
from contextlib import suppress

from ovi_ray.errors import StorageUnavailable
from ovi_ray.storage.paths import Location, write_bytes

_UNREACHABLE = ("no answer for", "NETWORK_CONNECTION", "Connection refused", "Couldn't connect", "Could not resolve")
_REASONS = (
    (
        ("NO_SUCH_BUCKET", "bucket does not exist", "Bucket '"),
        "there is no such bucket: create it, or correct the name",
    ),
    (
        ("configured region", "PermanentRedirect", "HTTP status 301"),
        "the bucket is in another region: set AWS_DEFAULT_REGION, or put ?region=... after the URI",
    ),
    (
        _UNREACHABLE,
        "the store does not answer: is its address right (AWS_ENDPOINT_URL, or ?endpoint_override=... after the URI)?",
    ),
    (
        ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT"),
        "the store does not know these credentials",
    ),
    (
        ("ExpiredToken", "REQUEST_EXPIRED", "access token", "MISSING_AUTHENTICATION_TOKEN"),
        "the store asks for credentials, and there are none or they have expired",
    ),
    (
        ("ACCESS_DENIED", "HTTP status 403", "PERMISSION_DENIED", "Permission denied"),
        "access is denied: there are no credentials, or they do not allow it",
    ),
    (("libjvm", "libhdfs"), "HDFS needs Java and Hadoop: set JAVA_HOME, HADOOP_HOME and CLASSPATH"),
)


def plain_reason(error: OSError) -> str:
    """What is wrong, and what would mend it where that is known; else what the system or the store says."""
    if error.strerror and error.__cause__ is None:
        return error.strerror
    said = _said(error)
    known = next((reason for marks, reason in _REASONS if any(mark in said for mark in marks)), None)
    return known or said.partition("\n")[0] or type(error).__name__


def is_unreachable(error: OSError) -> bool:
    """Whether nothing in the store could be reached now, rather than this one file."""
    return any(mark in _said(error) for mark in _UNREACHABLE)


def _said(error: OSError) -> str:
    """What the store said, without the URI; what was said of a store that said nothing."""
    return str(error.__cause__ or "") or str(error)


PROBE_BYTES = 1 << 20  # about a small video: a disk with a few bytes left is full
_ERRNOS = frozenset(
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


def storage_error(error: BaseException | None) -> str:
    """What an exception, or one that caused it, says of storage that is full or out of reach; empty for any other."""
    while error is not None:
        if isinstance(error, StorageUnavailable):
            return str(error)
        number = getattr(error, "errno", None)
        if number in _ERRNOS:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


def write_problem(folder: Location) -> str:
    """Why nothing can be written into a folder now, found by trying; empty when it can."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        write_bytes(probe, bytes(PROBE_BYTES))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""
