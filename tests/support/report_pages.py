"""Data that the script of a report shows."""

import base64
import gzip
import json
import re
from typing import Any


def clips_of(page: str) -> list[dict[str, Any]]:
    """The clips of a page, each as a mapping of its columns."""
    chunks = map(unpacked, re.findall(r'<template class="clips">(.*?)</template>', page))
    return [
        {name: column["values"][column["codes"][row] if "codes" in column else 0] for name, column in columns.items()}
        for chunk in chunks
        for columns in [chunk["columns"]]
        for row in range(chunk["rows"])
    ]


def unpacked(text: str) -> Any:
    """The value in a template of a page."""
    return json.loads(gzip.decompress(base64.b64decode(text)))
