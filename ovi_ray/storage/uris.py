"""URIs of stores: which there are, how one is read, and how its store is opened.

Credentials come from where each store's own tools take them (environment variables, profiles, the machine's role) and
never from a URI, which reports show.
"""

import functools
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import parse_qsl
from urllib.request import Request, urlopen

from obstore.exceptions import BaseError
from pyarrow import fs

from ovi_ray.errors import StorageUnavailable
from ovi_ray.storage.hdfs_store import HdfsStore
from ovi_ray.storage.object_store import Connect, ObjectStore
from ovi_ray.storage.store import Store

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

_S3_OPTIONS = frozenset({"region", "endpoint_override", "scheme"})
_OBJECT_STORES: Mapping[str, frozenset[str]] = {
    "s3": _S3_OPTIONS,
    "gs": frozenset(),
    "gcs": frozenset(),
    "abfs": frozenset(),
    "abfss": frozenset(),
}
"""Schemes of object stores and the options that may follow a URI of theirs."""
SCHEMES = (*_OBJECT_STORES, "hdfs", "viewfs")
_AZURE = ("abfs", "abfss")
_URI = re.compile(rf"({'|'.join(SCHEMES)})://([^/?]*)/*([^?]*)\??(.*)", re.DOTALL)

_CONNECT_S = 10.0
_RETRY_S = 20.0
"""No request is repeated later than this after its first try; below `Timeouts.answer_s`, so silence is not waited for twice."""
_RETRIES = 4
_KEYS_IN_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_PROFILE_NEEDS_BOTO3 = (
    "AWS profiles need boto3: pip install 'ovi-ray[aws]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)


def is_uri(text: str) -> bool:
    """Whether a text names a file in a store, rather than on a disk."""
    return text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def open_uri(uri: str) -> tuple[Store, str]:
    """The store and the key that a URI names; nothing is asked of the store yet. Raises ValueError that says what is right."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError(f"a URI such as s3://bucket/folder ({', '.join(SCHEMES)})")
    scheme, authority, key, options = match.groups()
    if "@" in authority and scheme not in _AZURE:  # theirs are container@account
        raise ValueError("a URI without credentials, which reports would show: set them as the store's tools take them")
    if not authority and scheme in _OBJECT_STORES:
        raise ValueError(f"a URI with a bucket, such as {scheme}://bucket/folder")
    if any(part in (".", "..") for part in key.split("/")):
        raise ValueError("a URI without . and .. in its path")
    _check_options(scheme, options)
    return _store(scheme, authority, options), "/".join(filter(None, key.split("/")))


def _check_options(scheme: str, options: str) -> None:
    known = _OBJECT_STORES.get(scheme)
    if known is None:  # HDFS: pyarrow passes unknown ones on to Hadoop
        return
    for name in dict(parse_qsl(options, keep_blank_values=True)):
        if name not in known:
            expected = f"with the options {', '.join(sorted(known))} alone" if known else "without options"
            raise ValueError(f"a {scheme} URI {expected}, not {name}")


@functools.cache
def _store(scheme: str, authority: str, options: str) -> Store:
    """One store for all paths in a bucket: it keeps its connections."""
    root = f"{scheme}://{authority}"
    if scheme not in _OBJECT_STORES:
        uri = f"{root}/{'?' if options else ''}{options}"
        return HdfsStore(root, lambda: fs.FileSystem.from_uri(uri), options=options)
    return ObjectStore(root, connector(scheme, authority, options), options=options)


def connector(scheme: str, authority: str, options: str = "") -> Connect:
    """Opens clients of a bucket with the options of a URI and the settings in the environment."""
    given = dict(parse_qsl(options, keep_blank_values=True))

    def connect(request_s: float) -> "Client":
        try:
            return _client(scheme, authority, given, request_s)
        except (BaseError, ValueError, TypeError) as error:
            raise StorageUnavailable(f"{scheme}://{authority}: {str(error).partition(chr(10))[0]}") from error

    return connect


def _client(scheme: str, authority: str, options: Mapping[str, str], request_s: float) -> "Client":
    from obstore.store import AzureStore, GCSStore, S3Store

    common: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=request_s),
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "allow_http": True,
        },
        "retry_config": {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
    }
    if scheme == "s3":
        return S3Store(authority, config=_s3_config(authority, options), **_s3_credentials(), **common)
    if scheme in _AZURE:
        container, _, host = authority.rpartition("@")
        if not container:
            raise StorageUnavailable(
                f"{scheme}://{authority}: expected {scheme}://container@account.dfs.core.windows.net"
            )
        return AzureStore(container, config={"account_name": host.partition(".")[0]}, **common)
    return GCSStore(authority, **common)


# -- S3 ----------------------------------------------------------------------------------------------------------------


def _s3_config(bucket: str, options: Mapping[str, str]) -> Any:
    """Settings in the URI; obstore takes those that are missing from the environment."""
    config = {}
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3", "")
    if endpoint:
        config["endpoint"] = endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}"
    if "region" in options:
        config["region"] = options["region"]
    elif not (endpoint or any(os.environ.get(f"AWS_{name}") for name in ("REGION", "DEFAULT_REGION", "ENDPOINT_URL"))):
        config["region"] = region_of(bucket)
    return config


def region_of(bucket: str, server: str = "https://s3.amazonaws.com") -> str:
    """The region of a bucket, which Amazon S3 tells without credentials; us-east-1 where it does not."""
    request = Request(f"{server}/{bucket}", method="HEAD")  # noqa: S310  (no scheme from a user)
    try:
        with urlopen(request, timeout=_CONNECT_S) as answer:  # noqa: S310
            headers = answer.headers
    except HTTPError as error:  # 403 or a redirect, which carry the header too
        headers = error.headers
    except OSError:
        return "us-east-1"
    return str(headers.get("x-amz-bucket-region") or "us-east-1")


def _s3_credentials() -> dict[str, Any]:
    """boto3's credentials where a profile holds them; obstore itself reads the environment and the machine's role."""
    if not _uses_profile():
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StorageUnavailable(_PROFILE_NEEDS_BOTO3) from error
    return {"credential_provider": Boto3CredentialProvider()}


def _uses_profile() -> bool:
    """Whether the user's AWS credentials lie in a profile, by the order in which the AWS tools look for them."""
    if any(os.environ.get(name) for name in _KEYS_IN_ENVIRONMENT):
        return False
    if os.environ.get("AWS_PROFILE"):
        return True
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
    )
    return any(
        "aws_access_key_id" in _text(file) or "sso_" in _text(file) or "role_arn" in _text(file) for file in files
    )


def _text(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):  # none, or no home
        return ""
