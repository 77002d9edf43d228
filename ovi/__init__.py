"""Ovi 1.1 in one process: renders a prompt, and optionally a first-frame image, to a video with its soundtrack.

`ovi` never imports ray. `import ovi` does not import torch either: `OviPipeline` is loaded on first use, so code that
only plans may import the torch-free modules, which the import contracts in `pyproject.toml` list (`ovi.config`,
`ovi.geometry`, `ovi.memory.plan`, `ovi.weights.layout`, ...).
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
