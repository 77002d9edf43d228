"""Memory planning: the formulas against every allocation of the real code at the published sizes, and the modes."""

import dataclasses
import pickle

import pytest
import torch

from ovi.config import MODEL_SPECS, Architecture, Component
from ovi.errors import MemoryTooSmall
from ovi.memory.plan import (
    KERNEL_MARGIN,
    MemoryDemand,
    MemoryMode,
    activations,
    check_budget,
    decode_activations,
    denoise_activations,
    encode_activations,
    plan_memory,
)
from ovi.models.feed_forward import Fp8Products
from ovi.models.fusion import FusionTransformer
from ovi.models.tiling import Tiling
from ovi.models.video_vae import VideoVAE
from ovi.sampling.guidance import embed_texts
from ovi.stages import Stage
from ovi.types import PromptEmbeds
from ovi.weights.formats import WeightFormat
from tests.support.live_memory import LiveMemory

GB = 10**9
PUBLISHED = {
    Component.TEXT_ENCODER: 11_400_000_000,
    Component.TRANSFORMER: 23_300_000_000,
    Component.VIDEO_VAE: 1_400_000_000,
    Component.AUDIO_VAE: 400_000_000,
    Component.VOCODER: 450_000_000,
}
IN_FP8 = Fp8Products(format=torch.float8_e4m3fn)
DTYPE, QINT8 = WeightFormat.DTYPE, WeightFormat.QINT8


def demand(transformer=23_300_000_000):
    return MemoryDemand(
        components=PUBLISHED | {Component.TRANSFORMER: transformer},
        activations=activations(Architecture(), MODEL_SPECS["720x720_5s"], 720, 720, 2),
    )


def shallow(arch, layers=2):
    """The published widths with fewer blocks, which add to the peak only the keys and values of the texts."""
    return dataclasses.replace(
        arch,
        video=dataclasses.replace(arch.video, num_layers=layers),
        audio=dataclasses.replace(arch.audio, num_layers=layers),
    )


def test_streamed_blocks_let_a_24_gb_card_keep_everything_and_need_the_hosts_memory():
    streamed = dataclasses.replace(demand(transformer=2_000_000_000), pinned=32 * GB)
    plan = plan_memory({DTYPE: streamed}, budget=22 * GB, host=64 * GB)
    assert (plan.mode, plan.stages, str(plan)) == (MemoryMode.RESIDENT, frozenset(Stage), "streamed resident")
    with pytest.raises(MemoryTooSmall, match=r"32\.00 GB of host memory") as raised:
        plan_memory({DTYPE: streamed}, budget=22 * GB, host=31 * GB)
    assert raised.value.needed == 32 * GB


# -- the formulas against the code ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "latents", "fp8"),
    [
        (torch.bfloat16, (31, 44, 44, 157), None),
        (torch.bfloat16, (61, 60, 60, 314), None),
        (torch.float32, (31, 44, 44, 157), None),
        (torch.bfloat16, (31, 44, 44, 157), IN_FP8),
        (torch.bfloat16, (61, 60, 60, 314), IN_FP8),
    ],
)
def test_a_denoise_needs_the_planned_memory(dtype, latents, fp8):
    frames, height, width, audio = latents
    arch = shallow(Architecture())
    with torch.device("meta"):
        model = FusionTransformer(arch.video, arch.audio).to(dtype)
    with torch.inference_mode(), torch.device("meta"), LiveMemory() as live:
        rows = torch.empty(512, 4096, dtype=dtype)
        text, _ = embed_texts(model, PromptEmbeds(positive=rows, video_negative=rows, audio_negative=rows))
        grid = model.embed_grid((48, frames, height, width), audio, torch.device("meta"))
        video = torch.empty(48, frames, height, width, dtype=dtype)
        time = model.embed_time(500.0, grid, False)
        model(video=video, audio=torch.empty(audio, 20, dtype=dtype), text=text, grid=grid, time=time, fp8=fp8)
    planned = denoise_activations(arch, frames * height * width // 4, dtype.itemsize, fp8=fp8 is not None)
    assert live.peak == pytest.approx(planned, rel=0.05)


@pytest.mark.parametrize("frames_per_pass", [4, 2, 1])
@pytest.mark.parametrize("size", [(720, 720), (704, 1280)])
def test_a_decode_needs_the_planned_memory_whatever_the_length(size, frames_per_pass):
    height, width = size
    with torch.device("meta"):
        vae = VideoVAE(Architecture().video_vae).to(torch.bfloat16)
    peaks = []
    for frames in (3, 6):
        with torch.inference_mode(), LiveMemory() as live:
            latents = torch.empty(1, 48, frames, height // 16, width // 16, device="meta")
            for _ in vae.decode_stream(latents, frames_per_pass):
                pass
        peaks.append(live.peak)
    planned = decode_activations(Architecture(), height // 16 * 16, width // 16 * 16, 2, frames_per_pass)
    assert peaks[0] == pytest.approx(planned, rel=0.05)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


def test_encoding_a_first_frame_needs_the_planned_memory():
    with torch.device("meta"):
        vae = VideoVAE(Architecture().video_vae).to(torch.bfloat16)
    with torch.inference_mode(), LiveMemory() as live:
        vae.encode(torch.empty(1, 3, 1, 960, 960, device="meta"))
    assert live.peak == pytest.approx(encode_activations(Architecture(), 960, 960, 2), rel=0.05)


def test_tiled_decodes_need_less_memory():
    with torch.device("meta"):
        vae = VideoVAE(Architecture().video_vae).to(torch.bfloat16)
    peaks = []
    for tiling in (None, Tiling(rows=2, columns=2), Tiling(rows=4, columns=4, overlap=4)):
        with torch.inference_mode(), LiveMemory() as live:
            for _ in vae.decode_stream(torch.empty(1, 48, 3, 60, 60, device="meta"), tiling=tiling):
                pass
        peaks.append(live.peak)
    assert peaks[1] < 0.8 * peaks[0]
    assert peaks[2] < peaks[1]


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget_gb", "host_gb", "mode"),
    [
        (80, 256, MemoryMode.RESIDENT),
        (32, 256, MemoryMode.OFFLOADED),
        (32, 16, MemoryMode.STAGED),
    ],
)
def test_a_device_gets_the_fastest_mode_that_fits(budget_gb, host_gb, mode):
    plan = plan_memory({DTYPE: demand()}, budget=budget_gb * GB, host=host_gb * GB)
    assert (plan.mode, plan.stages) == (mode, frozenset(Stage))
    assert max(plan.peak.values()) <= budget_gb * GB


def test_a_device_too_small_to_denoise_encodes_and_decodes():
    plan = plan_memory({DTYPE: demand()}, budget=16 * GB, host=0)
    assert plan.stages == frozenset(Stage) - {Stage.DENOISE}


def test_int8_is_chosen_if_it_is_allowed_and_lets_a_device_run_more_stages():
    demands = {DTYPE: demand(), QINT8: demand(12_400_000_000)}
    plan = plan_memory(demands, budget=24 * GB, host=0)
    assert (plan.weights, plan.mode, str(plan)) == (QINT8, MemoryMode.STAGED, "qint8 staged")
    assert plan_memory(demands, budget=32 * GB, host=0).weights is DTYPE
    assert plan_memory({DTYPE: demand()}, budget=24 * GB, host=0).weights is DTYPE


def test_a_device_on_which_nothing_fits_is_refused_with_the_smallest_sufficient_budget():
    with pytest.raises(MemoryTooSmall) as raised:
        plan_memory({DTYPE: demand()}, budget=GB // 2, host=0)
    assert plan_memory({DTYPE: demand()}, budget=raised.value.needed, host=0).stages
    with pytest.raises(MemoryTooSmall):
        plan_memory({DTYPE: demand()}, budget=raised.value.needed - 1, host=0)


def test_a_budget_too_small_for_a_stage_is_refused_with_the_stage_and_the_smallest_sufficient_budget():
    with pytest.raises(MemoryTooSmall, match=Stage.DENOISE) as raised:
        check_budget(demand(), 20 * GB)
    assert raised.value.needed == demand().staged
    check_budget(demand(), raised.value.needed)


def test_the_printed_smallest_budget_is_sufficient():
    with pytest.raises(MemoryTooSmall) as raised:
        check_budget(demand(), 20 * GB)
    printed = float(str(raised.value).split("at least ")[1].split()[0])
    check_budget(demand(), round(printed * GB))


def test_a_memory_error_keeps_its_facts_between_processes():
    with pytest.raises(MemoryTooSmall) as raised:
        check_budget(demand(), 20 * GB)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.needed) == (str(raised.value), raised.value.needed)


def test_activations_have_a_margin_for_kernels():
    counted = denoise_activations(Architecture(), 31 * 45 * 45 // 4, 2)
    planned = activations(Architecture(), MODEL_SPECS["720x720_5s"], 720, 720, 2)[Stage.DENOISE]
    assert planned == pytest.approx(KERNEL_MARGIN * counted, rel=0.05)
