"""The text encoder against the published one, and batches against single texts."""

import pytest
import torch

from ovi.config import Architecture, Component
from ovi.models.text_encoder import TextEncoder, _batches, num_parameters, tensor_shapes, tokenize
from ovi.weights.loading import load_component
from ovi.weights.tokenizer import load_tokenizer

MODEL = "720x720_5s"


@pytest.fixture(scope="module")
def encoder(tiny_dir):
    return load_component(tiny_dir, Component.TEXT_ENCODER, MODEL, torch.device("cpu"), torch.float32)


def test_the_rows_equal_the_published_ones(encoder, golden, assert_close_to_std):
    lengths = golden["t5.mask"].sum(dim=1).tolist()
    rows = encoder([ids[:n].tolist() for ids, n in zip(golden["t5.ids"], lengths, strict=True)])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    assert_close_to_std(padded, golden["t5.out"], 1e-5)


@pytest.mark.parametrize("size", ["tiny", "published"])
def test_the_tensor_shapes_are_known_without_building_an_encoder(tiny_dir, size):
    config = (Architecture.read(tiny_dir) if size == "tiny" else Architecture()).text_encoder
    with torch.device("meta"):
        built = TextEncoder(config)
    assert tensor_shapes(config) == {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    assert num_parameters(config) == sum(parameter.numel() for parameter in built.parameters())


def test_a_prompt_is_tokenized_as_published(tiny_dir, golden_json):
    tokenizer = load_tokenizer(tiny_dir, MODEL)
    assert tokenize(tokenizer, [golden_json["e2e"][0]["text_prompt"]]) == [golden_json["prompt_ids"]]


def test_an_empty_text_is_only_its_end_token(tiny_dir):
    assert tokenize(load_tokenizer(tiny_dir, MODEL), [""]) == [[1]]


def test_batched_texts_equal_texts_encoded_alone_in_the_order_given(encoder):
    texts = [[5, 9, 33, 1], [1], list(range(3, 40)), [7, 1], list(range(40, 60))]
    batched = encoder(texts, max_tokens_per_batch=50)
    for rows, ids in zip(batched, texts, strict=True):
        assert rows.shape[0] == len(ids)
        torch.testing.assert_close(rows, encoder([ids])[0], rtol=0, atol=1e-5)


def test_a_batch_padded_to_its_longest_stays_within_the_limit():
    batches = _batches([0, 1, 2, 3, 4], [1, 3, 4, 5, 20], max_tokens=12)
    assert batches == [[0, 1, 2], [3], [4]]


def test_bf16_rows_stay_close_to_float32(tiny_dir, golden, assert_close_to_std):
    encoder = load_component(tiny_dir, Component.TEXT_ENCODER, MODEL, torch.device("cpu"), torch.bfloat16)
    rows = encoder([golden["t5.ids"][0].tolist()])[0]
    assert rows.dtype == torch.bfloat16
    assert_close_to_std(rows.float(), golden["t5.out"][0], 0.1)
