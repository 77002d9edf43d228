"""A small generated checkpoint in the published folder layout: random weights for the real pipeline, no download.

It renders abstract clips of five or ten seconds with the same code as the real model. The files are deterministic: one
version of the code writes the same bytes on every machine.
"""

import dataclasses
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

from ovi.config import (
    MODEL_SPECS,
    Architecture,
    AudioVAEConfig,
    Component,
    TextEncoderConfig,
    VideoVAEConfig,
    VocoderConfig,
)
from ovi.models.audio_vae import AudioVAE
from ovi.models.fusion import FusionTransformer
from ovi.models.text_encoder import TextEncoder, publish_state_dict
from ovi.models.video_vae import VideoVAE
from ovi.models.vocoder import Vocoder
from ovi.weights.layout import ARCHITECTURE, TOKENIZER, component_file

SEED = 20_251_002
VIDEO_AREA = 128 * 128
_PICTURE_GAIN = 1.5  # raises the contrast, as random weights alone give a grey picture
_SOUND_GAIN = 0.02  # lowers the volume, as random weights alone give loud noise


def write_tiny_checkpoint(ckpt_dir: str | Path, architecture: Architecture | None = None) -> Path:
    """Write a checkpoint with all three models (about 8 MB), replacing existing files, and return its folder.

    `architecture` sets other sizes than `tiny_architecture()`; the tokenizer always has 256 tokens.
    """
    root, arch = Path(ckpt_dir), architecture or tiny_architecture()
    for path in (root / "Ovi", (root / TOKENIZER).parent, root / "MMAudio" / "ext_weights"):
        path.mkdir(parents=True, exist_ok=True)
    (root / ARCHITECTURE).write_text(json.dumps(_architecture_json(arch), indent=1), encoding="utf-8")
    _tokenizer(arch.text_encoder).save(str(root / TOKENIZER))
    for number, spec in enumerate(arch.models.values()):
        transformer = _seeded(lambda: FusionTransformer(arch.video, arch.audio), SEED + number)
        save_file(transformer.state_dict(), root / spec.checkpoint)
    for component, tensors in _shared_components(arch):
        torch.save(tensors, root / component_file(component, arch.models["720x720_5s"]))
    return root


def tiny_architecture() -> Architecture:
    """The sizes of the tiny checkpoint."""
    backbone: dict[str, Any] = {
        "dim": 40,
        "ffn_dim": 64,
        "freq_dim": 32,
        "num_heads": 2,
        "num_layers": 3,
        "text_len": 128,
        "text_dim": 24,
    }
    default = Architecture()
    return Architecture(
        video=dataclasses.replace(default.video, **backbone),
        audio=dataclasses.replace(default.audio, **backbone),
        text_encoder=TextEncoderConfig(
            vocab_size=256, dim=24, dim_attn=32, dim_ffn=56, num_heads=4, num_layers=2, text_len=128
        ),
        video_vae=VideoVAEConfig(dim=4, dec_dim=6),
        audio_vae=AudioVAEConfig(hidden_dim=8),
        vocoder=VocoderConfig(upsample_initial_channel=64),
        models={name: dataclasses.replace(spec, video_area=VIDEO_AREA) for name, spec in MODEL_SPECS.items()},
    )


def _architecture_json(arch: Architecture) -> dict[str, Any]:
    parts = {part.name: getattr(arch, part.name) for part in dataclasses.fields(arch) if part.name != "models"}
    return {
        **{name: dataclasses.asdict(part) for name, part in parts.items()},
        "models": {name: {"video_area": spec.video_area} for name, spec in arch.models.items()},
    }


def _tokenizer(config: TextEncoderConfig) -> Tokenizer:
    """A character-level tokenizer that, like UMT5's, ends every text with the end token."""
    space = "▁"
    characters = [space, *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((character, -5.0) for character in characters)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=space, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _shared_components(arch: Architecture) -> Iterator[tuple[Component, dict[str, Any]]]:
    """The components that all models share, each in its published file format."""
    encoder = _seeded(lambda: TextEncoder(arch.text_encoder), SEED)
    yield Component.TEXT_ENCODER, publish_state_dict(encoder.state_dict())
    yield Component.VIDEO_VAE, _smooth_pictures(_seeded(lambda: VideoVAE(arch.video_vae), SEED).state_dict())
    yield Component.AUDIO_VAE, dict(_seeded(lambda: AudioVAE(arch.audio_vae), SEED).state_dict())
    vocoder = _audible(_seeded(lambda: Vocoder(arch.vocoder), SEED).state_dict())
    yield Component.VOCODER, {"generator": _with_weight_norm(vocoder)}


def _smooth_pictures(video_vae: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the decoder draw smooth blobs instead of noise: blurring kernels, and one colour per patch of 4 pixels."""
    for key, tensor in video_vae.items():
        if key.startswith("decoder.") and tensor.ndim >= 4:
            tensor.copy_(tensor.mean(dim=(-2, -1), keepdim=True).expand_as(tensor))
    head = video_vae["decoder.head.2.weight"]  # 12 channels: 3 colours x 2 x 2 pixels
    head.copy_(_PICTURE_GAIN * head.unflatten(0, (3, 4))[:, :1].expand(-1, 4, *[-1] * 4).flatten(0, 1))
    return video_vae


def _audible(vocoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the vocoder audible: layers that preserve the signal's magnitude, and a last kernel without DC gain."""
    for key, tensor in vocoder.items():
        if key.endswith(".bias"):
            tensor.zero_()
        elif key.endswith(".weight"):
            tensor.mul_(3**0.5)  # PyTorch's initial weights shrink the signal by this much
    last = vocoder["conv_post.weight"]
    last.copy_(_SOUND_GAIN * (last - last.mean(dim=-1, keepdim=True)))
    return vocoder


def _with_weight_norm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split each convolution weight into magnitude and direction, as the published vocoder stores it."""
    published = {}
    for key, tensor in state_dict.items():
        if key.endswith(".weight"):
            published[key + "_g"] = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            published[key + "_v"] = tensor
        else:
            published[key] = tensor
    return published


def _seeded(build: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = build()
    return module.requires_grad_(False)
