"""The UMT5 text encoder (arXiv 2304.09151), built on transformers, with the published checkpoint's keys renamed.

transformers takes three seconds to import, so it is imported only when an encoder is built; `tensor_shapes` needs none.

Shapes: B texts per batch, N tokens of a text, P tokens of the longest text in the batch, C width.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ovi.config import MAX_TOKENS_PER_BATCH, TextEncoderConfig
from ovi.prompts import clean

_LOG = logging.getLogger(__name__)

# Published module name -> name in transformers; {} stands for the block number.
_NAMES = {
    "token_embedding": "shared",
    "blocks.{}.norm1": "encoder.block.{}.layer.0.layer_norm",
    "blocks.{}.attn.q": "encoder.block.{}.layer.0.SelfAttention.q",
    "blocks.{}.attn.k": "encoder.block.{}.layer.0.SelfAttention.k",
    "blocks.{}.attn.v": "encoder.block.{}.layer.0.SelfAttention.v",
    "blocks.{}.attn.o": "encoder.block.{}.layer.0.SelfAttention.o",
    "blocks.{}.pos_embedding.embedding": "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
    "blocks.{}.norm2": "encoder.block.{}.layer.1.layer_norm",
    "blocks.{}.ffn.gate.0": "encoder.block.{}.layer.1.DenseReluDense.wi_0",
    "blocks.{}.ffn.fc1": "encoder.block.{}.layer.1.DenseReluDense.wi_1",
    "blocks.{}.ffn.fc2": "encoder.block.{}.layer.1.DenseReluDense.wo",
    "norm": "encoder.final_layer_norm",
}
_TIED = "encoder.embed_tokens.weight"  # second name of the shared embedding in transformers
_BLOCK = re.compile(r"^(?:blocks|encoder\.block)\.(\d+)\.")
_T = TypeVar("_T")


class TextEncoder(nn.Module):
    """Encodes tokenized texts to the rows that the transformer attends to."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.text_len = config.text_len
        self.umt5 = _umt5(config)

    def forward(self, ids: Sequence[Sequence[int]], max_tokens_per_batch: int = MAX_TOKENS_PER_BATCH) -> list[Tensor]:
        """Rows [N, C] of each text, in the given order.

        Texts of similar length share a batch, padded to its longest text and limited to `max_tokens_per_batch` tokens with
        padding. A text's rows do not depend on the padding.
        """
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rows: dict[int, Tensor] = {}
        for batch in _batches(by_length, [len(ids[i]) for i in by_length], max_tokens_per_batch):
            rows.update(zip(batch, self._encode([ids[i] for i in batch]), strict=True))
        return [rows[i] for i in range(len(ids))]

    def _encode(self, batch: list[Sequence[int]]) -> list[Tensor]:
        device = self.umt5.device
        lengths = torch.tensor([len(text) for text in batch], device=device)
        ids = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in batch], batch_first=True).to(device)  # B P
        mask = torch.arange(ids.shape[1], device=device) < lengths.unsqueeze(1)  # B P
        hidden = self.umt5(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # B P C
        return [row[:length].clone() for row, length in zip(hidden, lengths.tolist(), strict=True)]


def tensor_shapes(config: TextEncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the state dict of a `TextEncoder`, by name, without building one."""
    width, inner, feed = config.dim, config.dim_attn, config.dim_ffn
    block: dict[str, tuple[int, ...]] = {
        "norm1": (width,),
        **dict.fromkeys(("attn.q", "attn.k", "attn.v"), (inner, width)),
        "attn.o": (width, inner),
        "pos_embedding.embedding": (config.num_buckets, config.num_heads),
        "norm2": (width,),
        **dict.fromkeys(("ffn.gate.0", "ffn.fc1"), (feed, width)),
        "ffn.fc2": (width, feed),
    }
    shapes = {"token_embedding": (config.vocab_size, width), "norm": (width,)}
    shapes |= {f"blocks.{n}.{name}": shape for n in range(config.num_layers) for name, shape in block.items()}
    return convert_state_dict({f"{name}.weight": shape for name, shape in shapes.items()})


def num_parameters(config: TextEncoderConfig) -> int:
    """Number of parameters of a `TextEncoder`; the shared embedding counts once."""
    return sum(prod(shape) for name, shape in tensor_shapes(config).items() if name != f"umt5.{_TIED}")


def convert_state_dict(published: Mapping[str, _T]) -> dict[str, _T]:
    """Rename published UMT5 keys to those of `TextEncoder`; unknown keys keep their name."""
    converted = {f"umt5.{_rename(key, _NAMES)}": tensor for key, tensor in published.items()}
    if "umt5.shared.weight" in converted:
        converted[f"umt5.{_TIED}"] = converted["umt5.shared.weight"]
    return converted


def publish_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert_state_dict`."""
    published_names = {name: published for published, name in _NAMES.items()}
    own = {key.removeprefix("umt5."): tensor for key, tensor in state_dict.items()}
    return {_rename(key, published_names): tensor for key, tensor in own.items() if key != _TIED}


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text: cleaned as in training, truncated to the tokenizer's limit, with the end token."""
    encodings = tokenizer.encode_batch([clean(text) for text in texts])
    for text, encoding in zip(texts, encodings, strict=True):
        if encoding.overflowing:
            _LOG.warning("only the first %d tokens of a text are read, its end is lost: %r", len(encoding), text)
    return [encoding.ids for encoding in encodings]


def _rename(key: str, names: Mapping[str, str]) -> str:
    module, _, parameter = key.rpartition(".")
    block = _BLOCK.search(module)
    number = block.group(1) if block else ""
    name = names.get(module.replace(f".{number}.", ".{}.", 1))
    return f"{name.format(number)}.{parameter}" if name else key


def _batches(order: list[int], lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Split `order`, sorted by ascending length, into batches of at most `max_tokens` tokens once padded.

    A text longer than the limit is a batch of its own.
    """
    batches: list[list[int]] = []
    for index, length in zip(order, lengths, strict=True):
        if batches and (len(batches[-1]) + 1) * length <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _umt5(config: TextEncoderConfig) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.dim_attn // config.num_heads,
            d_ff=config.dim_ffn,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
