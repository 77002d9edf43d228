"""Prompts that are longer than the text encoder: their end, where speech and sound are written, is not read."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ovi.prompt_tags import SOUND_TAGS, SPEECH_TAGS
from ovi.weights.tokenizer import count_tokens, kept_part, most_tokens
from ovi_ray.errors import show
from ovi_ray.inputs.notes import name_rows, rows_have
from ovi_ray.inputs.params import NEGATIVE_PROMPTS

_BYTES_PER_TOKEN = 3  # a cautious guess where no tokenizer is at hand; English has about 4.5, Chinese about 4


@dataclass(kw_only=True, slots=True, frozen=True)
class TextLimit:
    """How many tokens of a text are read, and what counts them."""

    tokens: int
    """Tokens that the text encoder reads, the end token included."""
    tokenizer: Callable[[], Tokenizer] | None
    """Loads the checkpoint's tokenizer, which truncates to `tokens`; None where no checkpoint is at hand."""


def length_notes(columns: Mapping[str, list[Any]], cleaned: Mapping[str, str], limit: TextLimit) -> list[str]:
    """A note for the prompts, and for each kind of negative prompt, that are longer than the limit.

    `columns` holds the texts and the row (from 0) of each clip, `cleaned` the text that is tokenized for each text. The
    tokenizer is loaded only if a text can be too long.
    """
    long = {text: plain for text, plain in cleaned.items() if most_tokens(plain) > limit.tokens}
    if not long:
        return []
    if limit.tokenizer is None:
        return _guess_note(columns, long, limit.tokens)
    tokenizer = limit.tokenizer()
    counts = dict(zip(long, count_tokens(tokenizer, list(long.values())), strict=True))
    counts = {text: count for text, count in counts.items() if count > limit.tokens}
    notes = []
    for name in ("prompt", *NEGATIVE_PROMPTS):
        texts = _texts_by_row(columns, name, counts)
        if texts:
            first, text = next(iter(texts.items()))
            lost = long[text][len(kept_part(tokenizer, long[text])) :].strip()
            rows = [f"{row} ({counts[text]:,} tokens)" for row, text in texts.items()]
            notes.append(
                f"{rows_have(rows)} a {name} that is longer than the {limit.tokens} tokens that the text encoder reads:"
                f" the end is lost, in row {first} {_what_is_lost(lost)}"
            )
    return notes


def _texts_by_row(columns: Mapping[str, list[Any]], name: str, wanted: Container[str]) -> dict[int, str]:
    """Row, from 1, and text of the rows whose text of that name is wanted; repeats of a row count once."""
    return {row + 1: text for row, text in zip(columns["row"], columns[name], strict=True) if text in wanted}


def _what_is_lost(lost: str) -> str:
    parts = [
        what
        for what, tags in (("speech", SPEECH_TAGS), ("the audio tag", SOUND_TAGS))
        if any(tag in lost for tag in tags)
    ]
    return f"with {' and '.join(parts)}, from {show(lost)} on" if parts else f"from {show(lost)} on"


def _guess_note(columns: Mapping[str, list[Any]], long: Mapping[str, str], tokens: int) -> list[str]:
    guessed = {text for text, plain in long.items() if len(plain.encode()) > _BYTES_PER_TOKEN * tokens}
    rows = sorted({row for name in ("prompt", *NEGATIVE_PROMPTS) for row in _texts_by_row(columns, name, guessed)})
    if not rows:
        return []
    return [
        f"{name_rows(rows)} may have a prompt that is longer than the {tokens} tokens that the text encoder reads; the"
        " tokenizer of a checkpoint folder (--ckpt-dir) counts them"
    ]
