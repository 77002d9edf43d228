"""The tokenizer of the text encoder (no torch): loading it, and counting tokens before anything is encoded."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ovi.config import Architecture
from ovi.errors import CheckpointMismatch
from ovi.weights.layout import TOKENIZER, existing_file

_ADDED_TOKENS = 2  # the end token, and a space before the first word
_TEXTS_AT_ONCE = 4096


def load_tokenizer(ckpt_dir: str | Path, model_name: str) -> Tokenizer:
    """The tokenizer, truncating to the text encoder's length. Raises CheckpointNotFound or CheckpointMismatch."""
    arch = Architecture.read(ckpt_dir)
    path = existing_file(Path(ckpt_dir), TOKENIZER, model_name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for any problem with the file
        raise CheckpointMismatch(
            f"not a tokenizer file ({error})", expected="a complete tokenizer.json", path=path
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(arch.text_encoder.text_len)
    return tokenizer


def most_tokens(cleaned: str) -> int:
    """The most tokens that a cleaned text can have: one for each byte, as it is or as the tokenizer normalises it."""
    size = len(cleaned.encode())
    if not cleaned.isascii():
        size = max(size, len(unicodedata.normalize("NFKC", cleaned).encode()))
    return size + _ADDED_TOKENS


def count_tokens(tokenizer: Tokenizer, cleaned: Sequence[str]) -> list[int]:
    """Tokens of each cleaned text before truncation, with the end token. Uses all cores."""
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    counts: list[int] = []
    for start in range(0, len(cleaned), _TEXTS_AT_ONCE):  # an encoding takes some kilobytes
        batch = list(cleaned[start : start + _TEXTS_AT_ONCE])
        counts.extend(len(encoding) for encoding in whole.encode_batch_fast(batch))
    return counts


def kept_part(tokenizer: Tokenizer, cleaned: str) -> str:
    """The beginning of a cleaned text that the tokenizer's limit leaves."""
    offsets = tokenizer.encode(cleaned).offsets
    return cleaned[: max((end for _, end in offsets), default=0)]
