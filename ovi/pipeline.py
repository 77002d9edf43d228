"""The whole pipeline in one process, a method a stage; `generate` only composes them.

Components are loaded when a stage first needs them, so a process that only decodes never loads the text encoder or the
transformer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ovi import checkpoints, geometry
from ovi.attention import AttentionBackend
from ovi.config import Architecture, Component, ModelSpec, SamplingParams
from ovi.images import fit_image, read_image
from ovi.media import frames_to_uint8
from ovi.memory import release_memory
from ovi.models.audio_vae import AudioVAE
from ovi.models.fusion import FusionTransformer
from ovi.models.text_encoder import TextEncoder, tokenize
from ovi.models.video_vae import VideoVAE
from ovi.models.vocoder import Vocoder
from ovi.prompts import rewrite_audio_tag
from ovi.sampling import denoise as sampling
from ovi.types import Clip, Latents, PromptEmbeds

ImageInput = str | Path | Image.Image | np.ndarray
M = TypeVar("M", bound=nn.Module)


class OviPipeline:
    """Ovi on one device. Open it with `from_pretrained`."""

    def __init__(
        self,
        ckpt_dir: Path,
        spec: ModelSpec,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        attention_backend: AttentionBackend,
    ) -> None:
        self.ckpt_dir = ckpt_dir
        self.spec = spec
        self.architecture = architecture
        self.device = device
        self.dtype = dtype
        self.attention_backend = attention_backend
        self._components: dict[Component, nn.Module] = {}

    @classmethod
    def from_pretrained(
        cls,
        ckpt_dir: str | Path,
        model_name: str = "720x720_5s",
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        attention_backend: AttentionBackend = AttentionBackend.SDPA,
    ) -> Self:
        """Open a checkpoint folder. No weights are read yet: `load` reads them now, a stage when it needs them.

        Raises InvalidRequest for an unknown model and CheckpointMismatch for an unusable `architecture.json`.
        """
        architecture = Architecture.read(ckpt_dir)
        spec = architecture.spec(model_name)
        return cls(Path(ckpt_dir), spec, architecture, torch.device(device), dtype, attention_backend)

    # -- components ------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> frozenset[Component]:
        """The components that are in memory."""
        return frozenset(self._components)

    def use_model(self, model_name: str) -> None:
        """Render with another model of the same folder: only the transformer differs, and is dropped.

        Raises InvalidRequest for an unknown model.
        """
        if model_name != self.spec.name:
            self.spec = self.architecture.spec(model_name)
            self.unload([Component.TRANSFORMER])

    def load(self, components: Iterable[Component] = tuple(Component)) -> None:
        """Load what is not loaded yet. Raises CheckpointNotFound or CheckpointMismatch."""
        for component in components:
            if component not in self._components:
                self._components[component] = checkpoints.load_component(
                    self.ckpt_dir, component, self.spec.name, self.device, self.dtype
                )

    def unload(self, components: Iterable[Component] = tuple(Component)) -> None:
        """Drop components and give their memory back."""
        dropped = [self._components.pop(component, None) for component in components]
        if any(module is not None for module in dropped):
            dropped.clear()
            release_memory(self.device)

    def _require(self, component: Component, kind: type[M]) -> M:
        self.load([component])
        module = self._components[component]
        if not isinstance(module, kind):
            raise TypeError(f"{component} is a {type(module).__name__}, not a {kind.__name__}")
        return module

    # -- stages ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> list[Tensor]:
        """Rows [N, text_dim] of each distinct text on the CPU, in the order given; equal texts are encoded once."""
        distinct = list(dict.fromkeys(texts))
        tokenizer = checkpoints.load_tokenizer(self.ckpt_dir, self.spec.name)
        encoder = self._require(Component.TEXT_ENCODER, TextEncoder)
        rows = encoder(tokenize(tokenizer, distinct))
        by_text = dict(zip(distinct, (row.cpu() for row in rows), strict=True))
        return [by_text[text] for text in texts]

    @torch.inference_mode()
    def encode_first_frame(self, image: ImageInput, size: tuple[int, int] | None = None) -> Tensor:
        """Normalised latent [48, 1, h, w] of an image, float32 on the CPU. Raises InvalidImage.

        `size` (height, width) in pixels is by default what the published model makes of the image's own.
        """
        array = read_image(image)
        size = size or geometry.image_size(array.shape[0], array.shape[1], self.spec.video_area)
        pixels = fit_image(array, size)
        vae = self._require(Component.VIDEO_VAE, VideoVAE)
        video = pixels[None, :, None].to(self.device, self.dtype)  # 1 3 1 H W
        return vae.encode(video).squeeze(0).float().cpu()

    @torch.inference_mode()
    def denoise(
        self,
        embeds: PromptEmbeds,
        params: SamplingParams,
        *,
        first_frame: Tensor | None = None,
        state: sampling.DenoiseState | None = None,
        on_step: sampling.OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Latents:
        """Latents of a clip, float32 on the CPU.

        `first_frame` is what `encode_first_frame` gave; it sets the size. `state` continues a clip that was stopped.
        Raises DenoiseStopped, holding the state to continue from, after `should_stop()` says yes.
        """
        if state is None:
            state = sampling.start(self._noise(params, first_frame))
        latents = sampling.denoise(
            self._require(Component.TRANSFORMER, FusionTransformer),
            state.to(self.device),
            self._to_device(embeds),
            params,
            first_frame=None if first_frame is None else first_frame.to(self.device),
            backend=self.attention_backend,
            on_step=on_step,
            should_stop=should_stop,
        )
        return Latents(video=latents.video.cpu(), audio=latents.audio.cpu())

    @torch.inference_mode()
    def decode_video(self, video_latents: Tensor) -> Iterator[Tensor]:
        """Frames of video latents [48, F, h, w] as they are ready: float32 chunks [3, t, H, W] in [-1, 1]."""
        vae = self._require(Component.VIDEO_VAE, VideoVAE)
        for chunk in vae.decode_stream(video_latents[None].to(self.device)):
            yield chunk.squeeze(0).float()

    @torch.inference_mode()
    def decode_audio(self, audio_latents: Tensor) -> np.ndarray:
        """Waveform of audio latents [L, 20]: float32 [S] at 16 kHz."""
        vae = self._require(Component.AUDIO_VAE, AudioVAE)
        vocoder = self._require(Component.VOCODER, Vocoder)
        mel = vae.decode(audio_latents.T[None].to(self.device, torch.float32))  # 1 80 2L
        return vocoder(mel).flatten().cpu().numpy()

    def decode_latents(self, latents: Latents) -> Clip:
        """The whole clip in memory. To write a file, stream `decode_video` into `ovi.media.VideoWriter` instead."""
        audio = self.decode_audio(latents.audio)
        frames = np.concatenate([frames_to_uint8(chunk) for chunk in self.decode_video(latents.video)])
        return Clip(frames=frames, audio=audio, latents=latents)

    # -- all together ----------------------------------------------------------------------------------------------

    def generate(
        self,
        text_prompt: str,
        image: ImageInput | None = None,
        *,
        on_step: sampling.OnStep | None = None,
        **params: Any,
    ) -> Clip:
        """Render one clip. The keyword arguments are the fields of `SamplingParams`, with its defaults.

        Raises InvalidRequest for parameters out of range, InvalidImage for an unusable image.
        """
        sampling_params = SamplingParams(**params)
        prompt, _ = rewrite_audio_tag(text_prompt, self.spec.audio_tag)
        texts = [prompt, sampling_params.video_negative_prompt, sampling_params.audio_negative_prompt]
        positive, video_negative, audio_negative = self.encode_text(texts)
        embeds = PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative)
        first_frame = None if image is None else self.encode_first_frame(image)
        latents = self.denoise(embeds, sampling_params, first_frame=first_frame, on_step=on_step)
        return self.decode_latents(latents)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _noise(self, params: SamplingParams, first_frame: Tensor | None) -> Latents:
        if first_frame is not None:
            rows, columns = first_frame.shape[-2:]
        else:
            height, width = geometry.snap_size(*params.video_frame_height_width, self.spec.video_area)
            rows, columns = geometry.latent_grid(height, width)
        channels = (self.architecture.video.in_dim, self.architecture.audio.in_dim)
        return sampling.initial_noise(self.spec, rows, columns, channels, params.seed)

    def _to_device(self, embeds: PromptEmbeds) -> PromptEmbeds:
        return PromptEmbeds(
            positive=embeds.positive.to(self.device, self.dtype),
            video_negative=embeds.video_negative.to(self.device, self.dtype),
            audio_negative=embeds.audio_negative.to(self.device, self.dtype),
        )
