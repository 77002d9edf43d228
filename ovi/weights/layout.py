"""File layout of the published checkpoint folder (no torch). Paths are relative to the folder."""

import shlex
from pathlib import Path

from ovi.config import ARCHITECTURE_FILE, Component, ModelSpec
from ovi.errors import CheckpointMismatch, CheckpointNotFound
from ovi.files import dangling_link, is_file, pointer_in_place_of

WAN = "Wan2.2-TI2V-5B"
MMAUDIO = "MMAudio/ext_weights"
TOKENIZER = f"{WAN}/google/umt5-xxl/tokenizer.json"
ARCHITECTURE = ARCHITECTURE_FILE


def component_file(component: Component, spec: ModelSpec) -> str:
    """File of a component's weights; only the transformer's depends on the model."""
    return {
        Component.TEXT_ENCODER: f"{WAN}/models_t5_umt5-xxl-enc-bf16.pth",
        Component.TRANSFORMER: spec.checkpoint,
        Component.VIDEO_VAE: f"{WAN}/Wan2.2_VAE.pth",
        Component.AUDIO_VAE: f"{MMAUDIO}/v1-16.pth",
        Component.VOCODER: f"{MMAUDIO}/best_netG.pt",
    }[component]


def model_files(spec: ModelSpec) -> list[str]:
    """Every file that a model needs: the weights of each component and the tokenizer."""
    return [component_file(component, spec) for component in Component] + [TOKENIZER]


def existing_file(ckpt_dir: Path, relative: str, model_name: str) -> Path:
    """The path of a file of a checkpoint folder.

    Raises CheckpointNotFound, which says how to get it, and CheckpointMismatch for a pointer in its place.
    """
    path = ckpt_dir / relative
    if not is_file(path):
        fetch = shlex.join(["ovi-ray", "weights", "download", "--model-name", model_name, str(ckpt_dir)])
        expected = f"a file of model {model_name}; download it with: {fetch}"
        raise CheckpointNotFound(dangling_link(path) or "no such file", expected=expected, path=path)
    if pointer := pointer_in_place_of(path):
        fetch = shlex.join(["git", "-C", str(path.parent), *pointer.fetch.split()])
        found = f"a {pointer.owner} pointer in place of the file"
        raise CheckpointMismatch(found, expected=f"the file itself; fetch it with: {fetch}", path=path)
    return path
