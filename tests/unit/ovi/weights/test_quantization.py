"""The transformer with 8-bit weights: quantized once, cached and reloaded; and the published 8-bit floats."""

import functools
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi import OviPipeline
from ovi.config import Architecture, SamplingParams
from ovi.errors import CheckpointMismatch, CheckpointNotFound, InvalidRequest
from ovi.types import PromptEmbeds
from ovi.weights.formats import FP8_FILE, WeightFormat
from ovi.weights.quantization import (
    conversion_lock,
    load_transformer,
    quantize_to_file,
    quantized_path,
    transformer_bytes,
)

CPU, MODEL = torch.device("cpu"), "720x720_5s"
DTYPE, QINT8, FP8 = WeightFormat.DTYPE, WeightFormat.QINT8, WeightFormat.FP8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def ckpts(tiny_dir, tmp_path):
    """The small checkpoint with an fp8 file in it: a plain cast."""
    copy = shutil.copytree(tiny_dir, tmp_path / "ckpts")
    weights = load_file(copy / "Ovi" / "model.safetensors")
    save_file({key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights.items()}, copy / FP8_FILE)
    return copy


def latents(ckpts, weights, dtype=torch.float32):
    pipe = OviPipeline.from_pretrained(ckpts, MODEL, device="cpu", dtype=dtype, weights=weights)
    generator = torch.Generator().manual_seed(0)
    text_dim = pipe.architecture.video.text_dim
    positive, negative = torch.randn(5, text_dim, generator=generator), torch.randn(3, text_dim, generator=generator)
    embeds = PromptEmbeds(positive=positive, video_negative=negative, audio_negative=negative)
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=3, slg_layer=1)
    return pipe.denoise(embeds, params).video


@pytest.mark.parametrize(("weights", "tolerance"), [(QINT8, 0.05), (FP8, 0.3)])
def test_a_clip_in_8_bits_is_close_and_not_equal(ckpts, weights, tolerance):
    exact, narrow = latents(ckpts, DTYPE), latents(ckpts, weights)
    error = (narrow - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < tolerance


def test_weights_are_quantized_once_and_then_read_from_the_cache(ckpts):
    first = latents(ckpts, QINT8)
    path = quantized_path(ckpts / "Ovi" / "model.safetensors", torch.float32)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    written = path.stat()
    assert torch.equal(latents(ckpts, QINT8), first)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_workers_that_start_at_once_wait_for_one_conversion(ckpts):
    path = quantized_path(ckpts / Architecture.read(ckpts).spec("720x720_5s").checkpoint, torch.bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    load = functools.partial(
        load_transformer, ckpts, "720x720_5s", torch.device("cpu"), torch.bfloat16, WeightFormat.QINT8
    )
    with ThreadPoolExecutor() as threads:
        with conversion_lock(path):  # of a worker that converts
            waiting = threads.submit(load)
            quantize_to_file(ckpts, "720x720_5s", torch.bfloat16, path)
            made = path.stat().st_mtime_ns
        waiting.result()
    assert path.stat().st_mtime_ns == made


def test_another_checkpoint_or_dtype_is_quantized_again(ckpts):
    file = ckpts / "Ovi" / "model.safetensors"
    before = quantized_path(file, torch.float32)
    assert quantized_path(file, torch.bfloat16) != before
    os.utime(file, (1, 1))
    assert quantized_path(file, torch.float32) != before


def test_a_quantization_that_cannot_be_written_leaves_no_file(ckpts, tmp_path):
    path = tmp_path / "q" / "model.safetensors"
    path.mkdir(parents=True)  # a folder is in the way
    with pytest.raises(OSError, match=r"model\.safetensors"):
        quantize_to_file(ckpts, MODEL, torch.float32, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not list(path.iterdir())


def test_a_corrupt_quantized_file_is_reported(ckpts):
    path = quantized_path(ckpts / "Ovi" / "model.safetensors", torch.float32)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"broken")
    with pytest.raises(CheckpointMismatch) as raised:
        load_transformer(ckpts, MODEL, CPU, torch.float32, QINT8)
    assert raised.value.path == str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", list(WeightFormat))
def test_the_weights_need_the_planned_bytes(ckpts, weights, dtype):
    module = load_transformer(ckpts, MODEL, CPU, dtype, weights)
    held = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    assert held == pytest.approx(transformer_bytes(Architecture.read(ckpts), dtype, weights), rel=2e-3)


def test_8_bit_weights_halve_the_published_transformer():
    sizes = {weights: transformer_bytes(Architecture(), torch.bfloat16, weights) / 1e9 for weights in WeightFormat}
    assert sizes == {
        DTYPE: pytest.approx(23.32, abs=0.01),
        QINT8: pytest.approx(12.38, abs=0.01),
        FP8: pytest.approx(12.37, abs=0.01),
    }


def test_fp8_is_stored_narrow_and_computed_wide(ckpts):
    module = load_transformer(ckpts, MODEL, CPU, torch.bfloat16, FP8)
    block = module.video_model.blocks[0]
    assert block.self_attn.q.weight.dtype == torch.float8_e4m3fn
    assert block.norm3.weight.dtype == module.dtype == torch.bfloat16
    assert block.self_attn.q(torch.zeros(1, 2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_fp8_of_another_model_or_without_its_file_is_refused(tiny_dir):
    with pytest.raises(InvalidRequest, match="expected model_name 720x720_5s, or weights 'qint8'"):
        OviPipeline.from_pretrained(tiny_dir, "960x960_10s", device="cpu", weights=FP8)
    with pytest.raises(CheckpointNotFound) as raised:
        load_transformer(tiny_dir, MODEL, CPU, torch.float32, FP8)
    assert raised.value.path == str(tiny_dir / FP8_FILE)
    assert "ovi-ray weights download --fp8" in raised.value.expected


def test_products_of_many_rows_with_reloaded_int8_weights_do_not_crash(tiny_dir, tmp_path):
    """Weights that are still mapped to the file would crash the process, so this runs in a child."""
    code = f"""
        import torch
        from ovi.weights.quantization import load_transformer
        from ovi.weights.formats import WeightFormat
        load = lambda: load_transformer({str(tiny_dir)!r}, {MODEL!r}, torch.device("cpu"), torch.bfloat16, WeightFormat.QINT8)
        load()
        layer = load().video_model.blocks[0].ffn[0]
        print(tuple(layer(torch.randn(1024, layer.in_features, dtype=torch.bfloat16)).shape))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("(1024,")
