"""Checkpoint files: validation against the architecture, fingerprints and loading.

Files are read through safetensors or with `torch.load(weights_only=True)`, so no code in a pickle is ever executed.
Modules are built on the meta device and tensors assigned one by one, so a load needs no second copy in host memory.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ovi.config import Architecture, Component, ModelSpec
from ovi.errors import CheckpointError, CheckpointMismatch, CheckpointNotFound
from ovi.finite import count_non_finite
from ovi.models import audio_vae, text_encoder, vocoder
from ovi.models.audio_vae import AudioVAE
from ovi.models.fusion import FusionTransformer
from ovi.models.text_encoder import TextEncoder
from ovi.models.video_vae import VideoVAE
from ovi.models.vocoder import Vocoder
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import TOKENIZER, component_file, existing_file
from ovi.weights.tokenizer import load_tokenizer

FLOAT32_COMPONENTS = frozenset({Component.AUDIO_VAE, Component.VOCODER})  # small, and audibly worse in bf16
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
_SLOW_TO_BUILD = Component.TEXT_ENCODER  # imports transformers, which takes seconds; its shapes are known without it


@dataclass(kw_only=True, slots=True, frozen=True)
class _Recipe:
    """The builder of a component and the conversion (renaming or folding) of its published tensors."""

    build: Callable[[Architecture], nn.Module]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


_RECIPES = {
    Component.TEXT_ENCODER: _Recipe(
        build=lambda arch: TextEncoder(arch.text_encoder), convert=text_encoder.convert_state_dict
    ),
    Component.TRANSFORMER: _Recipe(build=lambda arch: FusionTransformer(arch.video, arch.audio), convert=dict),
    Component.VIDEO_VAE: _Recipe(build=lambda arch: VideoVAE(arch.video_vae), convert=dict),
    Component.AUDIO_VAE: _Recipe(build=lambda arch: AudioVAE(arch.audio_vae), convert=audio_vae.convert_state_dict),
    Component.VOCODER: _Recipe(build=lambda arch: Vocoder(arch.vocoder), convert=vocoder.convert_state_dict),
}


@dataclass(kw_only=True, slots=True, frozen=True)
class FileStatus:
    """Result of checking one file of a checkpoint folder."""

    path: str
    """Path relative to the folder."""
    error: CheckpointError | None
    """Why the file cannot be used; None if it can."""

    @property
    def missing(self) -> bool:
        """Whether the file does not exist."""
        return isinstance(self.error, CheckpointNotFound)


def num_parameters(ckpt_dir: str | Path) -> dict[Component, int]:
    """Number of parameters of each component, from the architecture alone; no weights are read."""
    return dict(_count_parameters(Architecture.read(ckpt_dir)))


@lru_cache(maxsize=4)  # building the modules takes seconds
def _count_parameters(arch: Architecture) -> Mapping[Component, int]:
    with torch.device("meta"):
        modules = {
            component: _RECIPES[component].build(arch) for component in Component if component is not _SLOW_TO_BUILD
        }
    counts = {component: sum(p.numel() for p in module.parameters()) for component, module in modules.items()}
    return counts | {_SLOW_TO_BUILD: text_encoder.num_parameters(arch.text_encoder)}


def load_component(
    ckpt_dir: str | Path, component: Component, model_name: str, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Load a component onto `device`, in evaluation mode with frozen weights.

    Floating-point tensors are cast to `dtype`, except in the audio VAE and the vocoder, which are always float32. Raises
    CheckpointNotFound for a missing file and CheckpointMismatch for a truncated file or tensors that do not match the
    architecture.
    """
    arch = Architecture.read(ckpt_dir)
    path = existing_file(Path(ckpt_dir), component_file(component, arch.spec(model_name)), model_name)
    dtype = torch.float32 if component in FLOAT32_COMPONENTS else dtype
    with torch.device("meta"):
        module = _RECIPES[component].build(arch)
    tensors = _convert(component, path, dict(_read_tensors(path, device, dtype)))
    _raise_mismatch(path, _shapes(module.state_dict()), _shapes(tensors))
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def check_model(ckpt_dir: str | Path, model_name: str, weights: WeightFormat = WeightFormat.DTYPE) -> list[FileStatus]:
    """Check every file of a model against the architecture by reading only the files' headers.

    Raises InvalidRequest for an unknown model or format and CheckpointMismatch for an invalid `architecture.json`.
    """
    arch = Architecture.read(ckpt_dir)
    spec = in_format(arch.spec(model_name), weights)
    statuses = [
        _status(component_file(component, spec), partial(_check_component, Path(ckpt_dir), component, arch, spec))
        for component in Component
    ]
    return [*statuses, _status(TOKENIZER, partial(load_tokenizer, ckpt_dir, model_name))]


def non_finite_numbers(path: Path) -> dict[str, int]:
    """The tensors of a weight file with numbers that are not finite, and how many such numbers each has.

    Empty for a file without weights. Reads the whole file, a part at a time. Raises CheckpointMismatch.
    """
    if path.suffix not in WEIGHT_SUFFIXES:
        return {}
    counts = {name: count_non_finite(tensor) for name, tensor in _stored_tensors(path)}
    return {name: count for name, count in counts.items() if count}


def _check_component(ckpt_dir: Path, component: Component, arch: Architecture, spec: ModelSpec) -> None:
    path = existing_file(ckpt_dir, component_file(component, spec), spec.name)
    _raise_mismatch(path, _expected_shapes(component, arch), _shapes(_convert(component, path, _read_meta(path))))


def _expected_shapes(component: Component, arch: Architecture) -> dict[str, tuple[int, ...]]:
    if component is _SLOW_TO_BUILD:
        return text_encoder.tensor_shapes(arch.text_encoder)
    with torch.device("meta"):
        return _shapes(_RECIPES[component].build(arch).state_dict())


def _status(path: str, check: Callable[[], object]) -> FileStatus:
    try:
        check()
    except CheckpointError as error:
        return FileStatus(path=path, error=error)
    return FileStatus(path=path, error=None)


def _convert(component: Component, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return _RECIPES[component].convert(tensors)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(error.found, expected=error.expected, path=path) from error


def _read_tensors(path: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the file's tensors, moved to `device` and, if floating-point, cast to `dtype` one at a time."""
    if path.suffix == ".safetensors":
        with _open_safetensors(path, device) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, _cast(file.get_tensor(key), device, dtype)
    else:
        for key, tensor in _unpickle(path, "cpu").items():
            yield key, _cast(tensor, device, dtype)


def _stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors as they are stored, mapped into memory where the format allows it."""
    if path.suffix == ".safetensors":
        with _open_safetensors(path, torch.device("cpu")) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, file.get_tensor(key)
    else:
        yield from _unpickle(path, "cpu").items()


def _read_meta(path: Path) -> dict[str, Tensor]:
    """The file's tensors on the meta device: shapes without data."""
    if path.suffix != ".safetensors":
        return _unpickle(path, "meta")
    with _open_safetensors(path, torch.device("cpu")) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a dict
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _open_safetensors(path: Path, device: torch.device) -> safe_open:
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unpickle(path: Path, device: str) -> dict[str, Tensor]:
    """The flat dict of tensors in a torch file; a dict nested under the key `generator` is unwrapped."""
    try:
        # mmap leaves the weights on disk until they are used; the format before torch 1.6 cannot be mapped.
        loaded = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, OSError, ... for a broken file
        raise _unreadable(path, error) from error
    loaded = loaded.get("generator", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointMismatch("not a dict of tensors", expected="a state dict", path=path)
    return loaded


def _unreadable(path: Path, error: Exception) -> CheckpointMismatch:
    size = path.stat().st_size
    reason = (str(error).splitlines() or [""])[0].partition(". ")[0] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch then advises to run whatever the file contains
        reason = "not a file of tensors and nothing else"
    found = f"truncated or not a checkpoint ({size:,} bytes; {reason})"
    return CheckpointMismatch(found, expected="a complete file; download it again", path=path)


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _raise_mismatch(
    path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], shown: int = 5
) -> None:
    """Raise CheckpointMismatch, naming up to `shown` missing, extra and misshapen tensors each, if there are any."""
    missing = tuple(key for key in expected if key not in found)
    extra = tuple(key for key in found if key not in expected)
    misshapen = tuple(key for key in expected if key in found and expected[key] != found[key])
    shapes = [f"{key} {list(found[key])} (expected {list(expected[key])})" for key in misshapen]
    groups = {"missing": missing, "extra": extra, "misshapen": shapes}
    parts = [
        f"{len(names)} tensors {kind}: {', '.join(names[:shown])}{', ...' if len(names) > shown else ''}"
        for kind, names in groups.items()
        if names
    ]
    if parts:
        raise CheckpointMismatch(
            "; ".join(parts),
            expected="the tensor names and shapes of the architecture",
            path=path,
            missing=missing,
            extra=extra,
            misshapen=misshapen,
        )
