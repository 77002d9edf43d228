"""The published checkpoint folder: which file holds what. Pure. Paths are relative to the folder."""

from ovi.config import Component, ModelSpec

WAN = "Wan2.2-TI2V-5B"
MMAUDIO = "MMAudio/ext_weights"
TOKENIZER = f"{WAN}/google/umt5-xxl/tokenizer.json"
ARCHITECTURE = "architecture.json"


def component_file(component: Component, spec: ModelSpec) -> str:
    """File of a component; only the transformer's differs between models."""
    return {
        Component.TEXT_ENCODER: f"{WAN}/models_t5_umt5-xxl-enc-bf16.pth",
        Component.TRANSFORMER: spec.checkpoint,
        Component.VIDEO_VAE: f"{WAN}/Wan2.2_VAE.pth",
        Component.AUDIO_VAE: f"{MMAUDIO}/v1-16.pth",
        Component.VOCODER: f"{MMAUDIO}/best_netG.pt",
    }[component]


def model_files(spec: ModelSpec) -> list[str]:
    """Every file that a model needs."""
    return [component_file(component, spec) for component in Component] + [TOKENIZER]
