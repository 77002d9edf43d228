"""Ovi 1.1 in one process: a prompt (and optionally a first frame) becomes a video with its soundtrack.

`ovi` never imports ray. Importing the package is light: torch is loaded only when a name that needs it is used, so
pure code (manifests, planning) may import `ovi.config`, `ovi.geometry`, `ovi.prompts` and `ovi.errors`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovi.pipeline import OviPipeline

__all__ = ["OviPipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "OviPipeline":
        from ovi.pipeline import OviPipeline

        return OviPipeline
    raise AttributeError(f"module 'ovi' has no attribute {name!r}")
