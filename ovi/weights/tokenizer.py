"""The tokenizer of the text encoder (no torch): loading it, and counting tokens before anything is encoded."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ovi.config import Architecture
from ovi.errors import CheckpointMismatch
from ovi.weights.layout import TOKENIZER, existing_file

_ADDED_TOKENS = 2  # the end token, and a space before the first word
_TEXTS_AT_ONCE = 4096


def load_tokenizer(ckpt_dir: str | Path, model_name: str, *, truncates: bool = True) -> Tokenizer:
    """The tokenizer, truncating to the text encoder's length or not. Raises CheckpointNotFound or CheckpointMismatch."""
    arch = Architecture.read(ckpt_dir)
    path = existing_file(Path(ckpt_dir), TOKENIZER, model_name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for any problem with the file
        raise CheckpointMismatch(
            f"not a tokenizer file ({error})", expected="a complete tokenizer.json", path=path
        ) from error
    tokenizer.no_padding()
    if truncates:
        tokenizer.enable_truncation(arch.text_encoder.text_len)
    else:
        tokenizer.no_truncation()
    return tokenizer


def most_tokens(cleaned: str) -> int:
    """The most tokens that a cleaned text can have: one for each byte, as it is or as the tokenizer normalises it."""
    size = len(cleaned.encode())
    if not cleaned.isascii():
        size = max(size, len(unicodedata.normalize("NFKC", cleaned).encode()))
    return size + _ADDED_TOKENS


def count_long(tokenizer: Tokenizer, cleaned: Iterable[str], limit: int) -> dict[str, int]:
    """The cleaned texts of more than `limit` tokens, and the tokens of each, with the end token.

    The tokenizer must not truncate. Where it splits at spaces, as UMT5's does, it sees each distinct word once, and the tokens
    of a text are those of its words: a hundred thousand prompts take seconds.
    """
    possible = [text for text in dict.fromkeys(cleaned) if most_tokens(text) > limit]
    if _splits_at_spaces(tokenizer):
        words = list({word for text in possible for word in _words(text)})
        length_of = dict(zip(words, _lengths(tokenizer, words), strict=True))
        counts: Iterable[int] = (sum(map(length_of.__getitem__, _words(text))) for text in possible)
    else:
        counts = _lengths(tokenizer, possible)
    return {text: count + 1 for text, count in zip(possible, counts, strict=True) if count + 1 > limit}


def _words(cleaned: str) -> list[str]:
    """The words of a cleaned text, each with the space before it."""
    return cleaned.replace(" ", "\n ").split("\n")


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    split = tokenizer.pre_tokenizer
    return split is not None and len(split.pre_tokenize_str("a b")) == len(split.pre_tokenize_str("a")) + 1


def _lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[int]:
    """Tokens of each text without the end token."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):  # an encoding takes some kilobytes
        encodings = tokenizer.encode_batch_fast(texts[start : start + _TEXTS_AT_ONCE], add_special_tokens=False)
        yield from (len(encoding) for encoding in encodings)


def kept_part(tokenizer: Tokenizer, cleaned: str, limit: int) -> str:
    """The beginning of a longer text that `limit` tokens leave, the last of which is the end token."""
    return cleaned[: tokenizer.encode(cleaned).offsets[limit - 1][0]]
