"""Checksummed files of tensors: the latents of a clip, or the checkpoint of its denoise.

A file holds the clip's id, facts about how it was made, and a SHA-256 over all of it; a file that does not match is refused.
"""

import hashlib
import json
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ovi_ray.errors import LatentsUnusable
from ovi_ray.storage.paths import Location

Facts = dict[str, Any]


def save_tensors(path: Location, tensors: dict[str, Tensor], *, clip_id: str, facts: Facts) -> None:
    """Write a file atomically; it is durable when this returns. Raises OSError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"clip_id": clip_id, "facts": json.dumps(facts)}
    path.write_bytes(safetensors.torch.save(tensors, metadata | {"sha256": _checksum(tensors, metadata)}))


def load_tensors(path: Location, *, clip_id: str) -> tuple[dict[str, Tensor], Facts]:
    """Read what `save_tensors` wrote: tensors and facts.

    Raises LatentsUnusable for a file that is missing, corrupt or of another clip, and OSError.
    """
    try:
        content = path.read_bytes()  # read before it is examined: what cannot be read is not damaged
        metadata = _metadata(content)
        tensors = safetensors.torch.load(content)
    except FileNotFoundError as error:
        if path.parent.is_local and not path.parent.is_dir():
            raise  # the folder is away: nothing is known of the file
        raise LatentsUnusable(f"{path}: {error}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise LatentsUnusable(f"{path}: {error}") from None
    checksum = metadata.pop("sha256", "")
    if checksum != _checksum(tensors, metadata):
        raise LatentsUnusable(f"{path}: its checksum does not match its content")
    if metadata["clip_id"] != clip_id:
        raise LatentsUnusable(f"{path}: belongs to clip {metadata['clip_id']}; expected {clip_id}")
    return tensors, json.loads(metadata["facts"])


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file: its length in 8 bytes, then JSON. Raises ValueError."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return {name: str(value) for name, value in dict(metadata).items()}


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
