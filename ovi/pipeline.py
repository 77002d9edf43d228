"""The whole pipeline in one process, one method per stage; `generate` composes them.

Components are loaded when a stage first needs them, so a process that only decodes never loads the text encoder or the
transformer.

Shapes: F latent frames, h w latents per side, L audio latents, N text rows, t frames of a chunk, S audio samples.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from ovi import geometry
from ovi.attention import AttentionBackend, AttentionPlan
from ovi.attention.autotune import TrialCache, choose, plan_attention
from ovi.attention.backends import BACKENDS
from ovi.attention.target import AttentionTarget
from ovi.attention.types import Site, attention_shapes
from ovi.clip import Clip
from ovi.config import Architecture, Component, ModelSpec, SamplingParams
from ovi.convolution import ConvolutionPath
from ovi.convolution.choice import choose_path
from ovi.convolution.paths import convolving
from ovi.convolution.probe import decoder_shapes
from ovi.devices import usable_device
from ovi.errors import CheckpointNotFound, NonFiniteError, ShortcutUnavailable
from ovi.finite import all_finite
from ovi.kernels import KernelMode, KernelPlan
from ovi.kernels.choice import choose_kernels
from ovi.kernels.trial import KernelShape
from ovi.kernels.types import EAGER_PLAN
from ovi.media.images import fit_image, read_image
from ovi.media.video import frames_to_uint8
from ovi.memory.release import offload_to_cpu, release_memory
from ovi.models.audio_vae import AudioVAE
from ovi.models.feed_forward import Fp8Products, fp8_products
from ovi.models.fusion import FusionTransformer
from ovi.models.text_encoder import TextEncoder, tokenize
from ovi.models.tiling import Tiling
from ovi.models.video_vae import VideoVAE
from ovi.models.vocoder import Vocoder
from ovi.precision import full_float32
from ovi.prompts import in_model_form
from ovi.quality import COMBINATIONS, Quality, ShortcutName
from ovi.sampling import denoise as sampling
from ovi.sampling.guidance import PassNumerics
from ovi.sampling.lossy import LossyPolicy
from ovi.sampling.partner import NegativePass, NegativePasses
from ovi.stages import STAGES, Stage
from ovi.types import Latents, PromptEmbeds
from ovi.weights.formats import WeightFormat, check_format
from ovi.weights.loading import load_component
from ovi.weights.quantization import load_transformer
from ovi.weights.tokenizer import load_tokenizer

_LOG = logging.getLogger(__name__)

ImageInput = str | Path | Image.Image | np.ndarray
M = TypeVar("M", bound=nn.Module)
_SHOWN_CHARS = 60  # of a text in a message


class OviPipeline:
    """Ovi on one device; create it with `from_pretrained`."""

    def __init__(
        self,
        *,
        ckpt_dir: Path,
        spec: ModelSpec,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        attention_backend: AttentionBackend,
        allow_inexact: bool,
        weights: WeightFormat,
        compile_blocks: bool,
        stream_blocks: bool,
        kernels: KernelMode,
    ) -> None:
        self.ckpt_dir = ckpt_dir
        self.spec = spec
        self.architecture = architecture
        self.device = device
        self.dtype = dtype
        self.attention_backend = attention_backend
        self.allow_inexact = allow_inexact
        self.weights = weights
        self.compile_blocks = compile_blocks
        self.stream_blocks = stream_blocks
        self.kernels = kernels
        self._attention_plans: dict[tuple[int, ...], AttentionPlan] = {}
        self._attention_trials = TrialCache.default()
        self._convolution_path: ConvolutionPath | None = None
        self._kernel_plan: KernelPlan | None = None
        self._fp8: Fp8Products | ShortcutUnavailable | None = None
        self._tokenizer: Tokenizer | None = None
        self._components: dict[Component, nn.Module] = {}
        self._offloaded: dict[Component, nn.Module] = {}

    @classmethod
    def from_pretrained(
        cls,
        ckpt_dir: str | Path,
        model_name: str = "720x720_5s",
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        attention_backend: AttentionBackend = AttentionBackend.SDPA,
        allow_inexact: bool = False,
        weights: WeightFormat = WeightFormat.DTYPE,
        compile_blocks: bool = False,
        stream_blocks: bool = False,
        kernels: KernelMode = KernelMode.AUTO,
    ) -> Self:
        """Open a checkpoint folder without reading weights; `load` or the first stage that needs them does.

        `allow_inexact` lets `auto` choose attention backends that compute in fewer bits than `dtype`. `weights` is the
        storage format of the transformer. `compile_blocks` has torch.compile fuse the transformer's blocks: the first clip
        waits for it, and half precision rounds differently. `stream_blocks` leaves the transformer's blocks in pinned host
        memory and copies each to the device beside the work of the one before: the same numbers, for weights in `dtype`.
        `kernels` says which fused kernels may take part where they are not compiled.

        Raises CheckpointNotFound for a folder that does not exist,
        DeviceUnavailable for a device that is not there, InvalidRequest for an unknown model or one that is not published in
        that format, and CheckpointMismatch for an invalid `architecture.json`.
        """
        if not Path(ckpt_dir).is_dir():
            found = "a file" if Path(ckpt_dir).exists() else "no such folder"
            expected = f"a checkpoint folder, such as `ovi-ray weights download --model-name {model_name} DIR` makes"
            raise CheckpointNotFound(found, expected=expected, path=ckpt_dir)
        architecture = Architecture.read(ckpt_dir)
        spec = architecture.spec(model_name)
        check_format(weights, spec)
        return cls(
            ckpt_dir=Path(ckpt_dir),
            spec=spec,
            architecture=architecture,
            device=usable_device(device),
            dtype=dtype,
            attention_backend=attention_backend,
            allow_inexact=allow_inexact,
            weights=weights,
            compile_blocks=compile_blocks,
            stream_blocks=stream_blocks,
            kernels=kernels,
        )

    # -- components ------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> frozenset[Component]:
        """The components in the memory of the pipeline's device."""
        return frozenset(self._components)

    @property
    def offloaded(self) -> frozenset[Component]:
        """The components that `offload` moved to host memory."""
        return frozenset(self._offloaded)

    def use_model(self, model_name: str) -> None:
        """Switch to another model of the same folder; drops the transformer, the only component that differs.

        Raises InvalidRequest for an unknown model or one that is not published in the weight format in use.
        """
        if model_name != self.spec.name:
            spec = self.architecture.spec(model_name)
            check_format(self.weights, spec)
            self.spec = spec
            self.unload([Component.TRANSFORMER])

    def load(self, components: Iterable[Component] = tuple(Component)) -> None:
        """Load the components that are not loaded yet. Raises CheckpointNotFound or CheckpointMismatch."""
        for component in components:
            if component not in self._components:
                self._components[component] = self._load(component)

    def unload(self, components: Iterable[Component] = tuple(Component)) -> None:
        """Drop components, including offloaded ones, and release their memory."""
        dropped = [
            held.pop(component, None) for component in components for held in (self._components, self._offloaded)
        ]
        if any(module is not None for module in dropped):
            dropped.clear()
            release_memory(self.device)

    def offload(self, components: Iterable[Component] = tuple(Component)) -> None:
        """Move components to host memory, from which `load` moves them back. On a CPU, nothing is copied."""
        for component in components:
            if component in self._components:
                module = self._components.pop(component)
                if self._is_streamed(component):
                    cast(FusionTransformer, module).leave_device()
                    release_memory(self.device)
                self._offloaded[component] = offload_to_cpu(module)

    def on_cpu(self) -> Self:
        """A pipeline for the same model on the CPU, with nothing loaded."""
        return type(self)(
            ckpt_dir=self.ckpt_dir,
            spec=self.spec,
            architecture=self.architecture,
            device=torch.device("cpu"),
            dtype=self.dtype,
            attention_backend=self.attention_backend,
            allow_inexact=self.allow_inexact,
            weights=self.weights,
            compile_blocks=self.compile_blocks,
            stream_blocks=False,
            kernels=self.kernels,
        )

    def _load(self, component: Component) -> nn.Module:
        name, device, dtype = self.spec.name, self.device, self.dtype
        if component in self._offloaded:
            module = self._offloaded.pop(component)
            return self._streamed(module) if self._is_streamed(component) else module.to(device)
        if component is Component.TRANSFORMER:
            plan = self.kernel_plan()  # tried before the weights take the device's memory
            first = torch.device("cpu") if self.stream_blocks else device
            transformer = load_transformer(self.ckpt_dir, name, first, dtype, self.weights)
            if self.stream_blocks:
                self._streamed(transformer)
            transformer.fuse(EAGER_PLAN if self.compile_blocks else plan.in_transformer)
            if self.compile_blocks:
                transformer.compile_blocks()
            return transformer
        module = load_component(self.ckpt_dir, component, name, device, dtype)
        if isinstance(module, VideoVAE):
            module.fuse(self.decoder_kernels())
        return module

    def _is_streamed(self, component: Component) -> bool:
        return self.stream_blocks and component is Component.TRANSFORMER

    def _streamed(self, transformer: nn.Module) -> nn.Module:
        cast(FusionTransformer, transformer).stream_blocks(self.device)
        return transformer

    def _require(self, component: Component, kind: type[M]) -> M:
        self.load([component])
        module = self._components[component]
        if not isinstance(module, kind):
            raise TypeError(f"{component} is a {type(module).__name__}; expected a {kind.__name__}")
        return module

    # -- stages ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    @full_float32()
    def encode_text(self, texts: Sequence[str]) -> list[Tensor]:
        """Rows [N, text_dim] of each text on the CPU, in the given order; equal texts are encoded once.

        Raises NonFiniteError for rows that are not finite numbers.
        """
        distinct = list(dict.fromkeys(texts))
        if self._tokenizer is None:  # kept: a vocabulary of 256,000 pieces takes longer to read than a batch to encode
            self._tokenizer = load_tokenizer(self.ckpt_dir, self.spec.name)
        encoder = self._require(Component.TEXT_ENCODER, TextEncoder)
        rows = encoder(tokenize(self._tokenizer, distinct))
        for text, finite in zip(distinct, torch.stack([all_finite(row) for row in rows]).tolist(), strict=True):
            if not finite:
                raise self._non_finite("text embeddings", Stage.ENCODE_TEXT, f"for the text {text[:_SHOWN_CHARS]!r}")
        by_text = dict(zip(distinct, (row.cpu() for row in rows), strict=True))
        return [by_text[text] for text in texts]

    @torch.inference_mode()
    @full_float32()
    def encode_first_frame(self, image: ImageInput, size: tuple[int, int] | None = None) -> Tensor:
        """Normalised latent [48, 1, h, w] of an image, float32 on the CPU. Raises InvalidImage and NonFiniteError.

        `size` is (height, width) in pixels; by default the image's size fitted to the model's area (`image_size`).
        """
        array = read_image(image)
        size = size or geometry.image_size(array.shape[0], array.shape[1], self.spec.video_area)
        pixels = fit_image(array, size)
        vae = self._require(Component.VIDEO_VAE, VideoVAE)
        video = pixels[None, :, None].to(self.device, self.dtype)  # 1 3 1 H W
        with convolving(self.convolution_path()):
            latent = vae.encode(video).squeeze(0).float()
        if not all_finite(latent):
            raise self._non_finite("first-frame latents", Stage.ENCODE_FIRST_FRAME, "for its only frame")
        return latent.cpu()

    @torch.inference_mode()
    @full_float32()
    def denoise(
        self,
        embeds: PromptEmbeds,
        params: SamplingParams,
        *,
        first_frame: Tensor | None = None,
        state: sampling.DenoiseState | None = None,
        partner: NegativePass | None = None,
        on_step: sampling.OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Latents:
        """Denoise a clip to latents, float32 on the CPU.

        `first_frame` is a result of `encode_first_frame` and determines the clip's size. `state` resumes a stopped clip. A
        `partner` is another device that runs `assist` for this clip.
        Raises DenoiseStopped, with the state to resume from, once `should_stop()` returns true, AttentionUnavailable if
        the attention backend cannot run on the device, and NonFiniteError instead of latents or a state that are not finite.
        """
        if state is None:
            state = sampling.start(self._noise(params, first_frame))
        video_shape, audio_length = state.video.sample.shape, state.audio.sample.shape[0]
        attention = self.attention_plan(video_shape, audio_length)
        if partner is not None:
            partner.expect(self._signature(params, video_shape, first_frame, attention))
        latents = sampling.denoise(
            self._require(Component.TRANSFORMER, FusionTransformer),
            state.to(self.device),
            self._to_device(embeds),
            params,
            first_frame=None if first_frame is None else first_frame.to(self.device),
            attention=attention,
            policy=self.lossy_policy(params.quality, video_shape, audio_length),
            partner=partner,
            on_step=on_step,
            should_stop=should_stop,
        )
        return Latents(video=latents.video.cpu(), audio=latents.audio.cpu(), loss=latents.loss)

    @torch.inference_mode()
    @full_float32()
    def assist(
        self,
        embeds: PromptEmbeds,
        params: SamplingParams,
        folder: Path,
        *,
        first_frame: Tensor | None = None,
        should_stop: Callable[[], bool],
    ) -> int:
        """Compute the negative pass of each step of a denoise that runs in another process, which looks into `folder`.

        The other arguments are those of that denoise. Returns the number of steps, at its end or once `should_stop()` returns
        true. Raises PartnerUnavailable where the other process is gone or would get other numbers than it computes itself,
        and NonFiniteError for predictions that are not finite.
        """
        transformer = self._require(Component.TRANSFORMER, FusionTransformer)
        shapes = self._latent_shapes(params, first_frame)
        video, audio = (torch.empty(shape, dtype=transformer.dtype, device=self.device) for shape in shapes)
        attention = self.attention_plan(video.shape, audio.shape[0])
        texts = self._to_device(embeds)
        passes = NegativePasses(
            transformer=transformer,
            text=transformer.embed_text(video=texts.video_negative, audio=texts.audio_negative),
            grid=transformer.embed_grid(video.shape, audio.shape[0], self.device),
            first_frame_is_clean=first_frame is not None,
            skip_layer=params.slg_layer or None,
            attention=attention,
            video=video,
            audio=audio,
            signature=self._signature(params, video.shape, first_frame, attention),
        )
        return passes.serve(folder, should_stop)

    def attention_plan(self, video_shape: tuple[int, ...], audio_length: int) -> AttentionPlan:
        """The attention plan for video latents of `video_shape` (48, F, h, w) and `audio_length` audio latents.

        Chosen on first use and then constant. Raises AttentionUnavailable if the requested backend cannot run.
        """
        key = (*video_shape, audio_length)
        if key not in self._attention_plans:
            shapes = attention_shapes(self.architecture.video, self.architecture.audio, video_shape, audio_length)
            self._attention_plans[key] = plan_attention(
                self.attention_backend,
                self._attention_target(),
                shapes,
                allow_inexact=self.allow_inexact,
                cache=self._attention_trials,
            )
        return self._attention_plans[key]

    def lossy_policy(self, quality: Quality, video_shape: tuple[int, ...], audio_length: int) -> LossyPolicy | None:
        """The shortcuts of a quality that this device has, for latents of a shape as in `attention_plan`; None for exact.

        Those that it has not are left out, each with its reason.
        """
        combination = COMBINATIONS[quality]
        if not combination.shortcuts:
            return None
        names = {shortcut.name for shortcut in combination.shortcuts}
        exact = PassNumerics(attention=self.attention_plan(video_shape, audio_length))
        low_bit, left_out = exact, dict[ShortcutName, str]()
        try:
            if ShortcutName.FP8_FEED_FORWARD in names:
                low_bit = replace(low_bit, fp8=self._fp8_products())
        except ShortcutUnavailable as error:
            left_out[ShortcutName.FP8_FEED_FORWARD] = error.reason
        try:
            if ShortcutName.LOW_BIT_ATTENTION in names:
                attention = self._low_bit_attention(exact.attention, video_shape, audio_length)
                low_bit = replace(low_bit, attention=attention)
        except ShortcutUnavailable as error:
            left_out[ShortcutName.LOW_BIT_ATTENTION] = error.reason
        return LossyPolicy(combination=combination.without(left_out), exact=exact, low_bit=low_bit, left_out=left_out)

    def _fp8_products(self) -> Fp8Products:
        """The way of 8-bit products on this device, tried on first use and then constant. Raises ShortcutUnavailable."""
        if self.weights is WeightFormat.QINT8:
            raise ShortcutUnavailable(ShortcutName.FP8_FEED_FORWARD, "the weights are 8-bit integers already")
        if self._fp8 is None:
            config = self.architecture.video
            try:
                self._fp8 = fp8_products(
                    self.device,
                    self.dtype,
                    dim=config.dim,
                    ffn_dim=config.ffn_dim,
                    kernels=EAGER_PLAN if self.compile_blocks else self.kernel_plan(),
                    fused=self.kernels is not KernelMode.EAGER and self.device.type == "cuda",
                )
            except ShortcutUnavailable as unavailable:
                self._fp8 = unavailable
        if isinstance(self._fp8, ShortcutUnavailable):
            raise self._fp8
        return self._fp8

    def _low_bit_attention(self, plan: AttentionPlan, video_shape: tuple[int, ...], audio_length: int) -> AttentionPlan:
        """The plan with the fastest backend, 8-bit ones included, where video attends to itself. Raises ShortcutUnavailable."""
        if self.attention_backend is not AttentionBackend.AUTO:
            reason = f"attention {self.attention_backend} was asked for, and only auto chooses"
            raise ShortcutUnavailable(ShortcutName.LOW_BIT_ATTENTION, reason)
        site = Site.VIDEO_SELF
        shapes = attention_shapes(self.architecture.video, self.architecture.audio, video_shape, audio_length)
        target, trials = self._attention_target(), self._attention_trials
        choice = choose(target, {site: shapes[site]}, allow_inexact=True, cache=trials)[site]
        if BACKENDS[choice.chosen].exact:
            tried = (trial for trial in choice.trials if not BACKENDS[trial.backend].exact)
            reasons = (f"{trial.backend}: {trial.reason or f'slower than {choice.chosen}'}" for trial in tried)
            raise ShortcutUnavailable(ShortcutName.LOW_BIT_ATTENTION, "; ".join(reasons))
        return replace(plan, video_self=choice.chosen)

    def _attention_target(self) -> AttentionTarget:
        held = (weight for module in self._components.values() for weight in module.parameters())
        # streamed weights are on the host
        here = sum(weight.nbytes for weight in held if weight.device.type == self.device.type)
        return AttentionTarget.of(self.device, self.dtype, model_bytes=here)

    def convolution_path(self) -> ConvolutionPath:
        """The convolution mode of the decoders on this device: tried on first use and then constant.

        Raises ConvolutionsWrong where every way gives wrong numbers.
        """
        if self._convolution_path is None:
            target = AttentionTarget.of(self.device, self.dtype)
            shapes = decoder_shapes(self.architecture, self.spec, self.dtype)
            self._convolution_path = choose_path(target, shapes).path
        return self._convolution_path

    def kernel_plan(self) -> KernelPlan:
        """The fused kernels for this device: tried on first use and then constant. A compiled transformer uses none."""
        if self._kernel_plan is None:
            target = AttentionTarget.of(self.device, self.dtype)
            self._kernel_plan = choose_kernels(self.kernels, target, KernelShape.of(self.architecture)).plan
        return self._kernel_plan

    def decoder_kernels(self) -> KernelPlan:
        """The part of the plan that decodes: with its layout where torch itself chooses how to run convolutions."""
        plan = self.kernel_plan().in_decoder
        is_torchs = self.convolution_path() is ConvolutionPath.DEFAULT
        return plan if is_torchs else dataclasses.replace(plan, channels_last=False)

    @torch.inference_mode()
    def decode_video(self, video_latents: Tensor, tiling: Tiling | None = None) -> Iterator[Tensor]:
        """Decode video latents [48, F, h, w] chunk by chunk: float32 [3, t, H, W] in [-1, 1].

        A `tiling` needs less memory and slightly changes the pixels near its seams. Raises NonFiniteError instead of
        yielding a chunk that is not finite.
        """
        vae = self._require(Component.VIDEO_VAE, VideoVAE)
        num_frames, chunks = 0, vae.decode_stream(video_latents[None].to(self.device), tiling=tiling)
        while True:
            with full_float32(), convolving(self.convolution_path()):  # not while the caller has the chunk
                chunk = next(chunks, None)
            if chunk is None:
                return
            if not all_finite(chunk):  # the caller waits for the chunk too
                frame = num_frames + 1
                raise self._non_finite("frames", Stage.DECODE, f"at frame {frame}", step=frame)
            num_frames += chunk.shape[2]
            yield chunk.squeeze(0).float()

    @torch.inference_mode()
    @full_float32()
    def decode_audio(self, audio_latents: Tensor) -> np.ndarray:
        """Decode audio latents [L, 20] to a waveform: float32 [S] at 16 kHz. Raises NonFiniteError."""
        vae = self._require(Component.AUDIO_VAE, AudioVAE)
        vocoder = self._require(Component.VOCODER, Vocoder)
        with convolving(self.convolution_path()):
            mel = vae.decode(audio_latents.T[None].to(self.device, torch.float32))  # 1 80 2L
            wave = vocoder(mel).flatten()
        for tensor, values in (("mel bands of the sound", mel), ("samples of the sound", wave)):
            if not all_finite(values):
                raise self._non_finite(tensor, Stage.DECODE, "in the whole sound")
        return wave.cpu().numpy()

    def decode_latents(self, latents: Latents) -> Clip:
        """Decode a whole clip in memory. To write a file, stream `decode_video` to `ovi.media.video.VideoWriter`."""
        audio = self.decode_audio(latents.audio)
        frames = np.concatenate([frames_to_uint8(chunk) for chunk in self.decode_video(latents.video)])
        return Clip(frames=frames, audio=audio, latents=latents)

    # -- whole clips -----------------------------------------------------------------------------------------------

    def generate(
        self,
        text_prompt: str,
        image: ImageInput | None = None,
        *,
        on_step: sampling.OnStep | None = None,
        **params: Any,
    ) -> Clip:
        """Render one clip. Keyword arguments are the fields of `SamplingParams`.

        Raises InvalidRequest for a parameter out of range and InvalidImage for an unusable image.
        """
        sampling_params = SamplingParams(**params)
        if not self.architecture.can_skip(sampling_params.slg_layer):
            _LOG.warning(
                "slg_layer %d skips nothing; expected %s", sampling_params.slg_layer, self.architecture.skippable_blocks
            )
        prompt = in_model_form(text_prompt, self.spec.audio_tag)
        for fault in prompt.faults:
            _LOG.warning("the prompt has %s: %r %s", fault.kind, fault.tag, fault.reading)
        texts = [prompt.text, sampling_params.video_negative_prompt, sampling_params.audio_negative_prompt]
        positive, video_negative, audio_negative = self.encode_text(texts)
        embeds = PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative)
        first_frame = None if image is None else self.encode_first_frame(image)
        latents = self.denoise(embeds, sampling_params, first_frame=first_frame, on_step=on_step)
        return self.decode_latents(latents)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _non_finite(self, tensor: str, stage: Stage, first: str, *, step: int | None = None) -> NonFiniteError:
        components = " and ".join(sorted(component.replace("_", " ") for component in STAGES[stage].components))
        causes = (f"damaged weights of the {components}", f"an overflow in {str(self.dtype).removeprefix('torch.')}")
        return NonFiniteError(tensor, stage=stage, first=first, step=step, causes=causes)

    def _noise(self, params: SamplingParams, first_frame: Tensor | None) -> Latents:
        rows, columns = self._latent_grid(params, first_frame)
        channels = (self.architecture.video.in_dim, self.architecture.audio.in_dim)
        return sampling.initial_noise(self.spec, rows, columns, channels, params.seed)

    def _latent_grid(self, params: SamplingParams, first_frame: Tensor | None) -> tuple[int, int]:
        if first_frame is not None:
            rows, columns = first_frame.shape[-2:]
            return rows, columns
        height, width = geometry.snap_size(*params.video_frame_height_width, self.spec.video_area)
        return geometry.latent_grid(height, width)

    def _latent_shapes(
        self, params: SamplingParams, first_frame: Tensor | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[48, F, h, w] and [L, 20]."""
        grid = self._latent_grid(params, first_frame)
        video = (self.architecture.video.in_dim, self.spec.video_latent_length, *grid)
        return video, (self.spec.audio_latent_length, self.architecture.audio.in_dim)

    def _signature(
        self,
        params: SamplingParams,
        video_shape: tuple[int, ...],
        first_frame: Tensor | None,
        attention: AttentionPlan,
    ) -> str:
        """All that must be equal on two devices for the negative pass of a clip to have equal numbers on both."""
        device = AttentionTarget.of(self.device, self.dtype).name
        threads = f", {torch.get_num_threads()} threads" * (self.device.type == "cpu")
        frame = "a clean first frame" if first_frame is not None else "no first frame"
        kernels = "compiled" if self.compile_blocks else self.kernel_plan().in_transformer
        return (
            f"{self.spec.name} {self.dtype} {self.weights}, kernels {kernels}, {tuple(video_shape)}, {frame}, without block"
            f" {params.slg_layer}, {attention}, torch {torch.__version__} on {device}{threads}"
        )

    def _to_device(self, embeds: PromptEmbeds) -> PromptEmbeds:
        return PromptEmbeds(
            positive=embeds.positive.to(self.device, self.dtype),
            video_negative=embeds.video_negative.to(self.device, self.dtype),
            audio_negative=embeds.audio_negative.to(self.device, self.dtype),
        )
