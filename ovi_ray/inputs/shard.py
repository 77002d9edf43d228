"""One of N parts of a job's clips, as `--shard 3/16` names it."""

import re
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.inputs.manifest import Manifest

_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(kw_only=True, slots=True, frozen=True)
class Shard:
    """Every `parts`-th clip, from the one with number `part`, from 0 on."""

    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InputError for what names no part."""
        match = _SHARD.fullmatch(text)
        part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
        if part >= parts:
            expected = "I/N, such as 0/4, 1/4, 2/4 and 3/4"
            raise InputError([Problem(file=COMMAND_LINE, field="--shard", value=show(text), expected=expected)])
        return cls(part=part, parts=parts)

    def of(self, manifest: Manifest) -> Manifest:
        """The clips of the part."""
        clips = manifest.table.take(pa.array(range(self.part, len(manifest), self.parts), pa.int64()))
        return Manifest(table=clips, notes=manifest.notes)
