"""Prompts that are longer than the text encoder: their end, where speech and sound are written, is not read."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ovi.config import Architecture
from ovi.files import is_file
from ovi.prompt_tags import SOUND_TAGS, SPEECH_TAGS
from ovi.weights.layout import TOKENIZER
from ovi.weights.tokenizer import count_long, kept_part, load_tokenizer, most_tokens
from ovi_ray.errors import show
from ovi_ray.inputs.notes import name_rows, rows_have
from ovi_ray.inputs.params import NEGATIVE_PROMPTS
from ovi_ray.storage.paths import Location

_LOST_CHARS = 40  # of a lost end, in a note
_BYTES_PER_TOKEN = 3  # a cautious guess where no tokenizer is at hand; English has about 4.5, Chinese about 4


@dataclass(kw_only=True, slots=True, frozen=True)
class TextLimit:
    """The number of tokens of a text that are read, and the tokenizer that counts them."""

    tokens: int
    """Tokens that the text encoder reads, the end token included."""
    tokenizer: Callable[[], Tokenizer] | None
    """Loads the checkpoint's tokenizer, which must not truncate; None where no checkpoint is at hand."""


def text_limit(ckpt_dir: Location | None, model_name: str) -> TextLimit:
    """The limit of the text encoder in a folder on this machine that has a tokenizer, or the published one uncounted."""
    folder = None if ckpt_dir is None else ckpt_dir.local_path
    if folder is None or not is_file(folder / TOKENIZER):
        return TextLimit(tokens=Architecture().text_encoder.text_len, tokenizer=None)
    return TextLimit(
        tokens=Architecture.read(folder).text_encoder.text_len,
        tokenizer=lambda: load_tokenizer(folder, model_name, truncates=False),
    )


def length_notes(columns: Mapping[str, list[Any]], cleaned: Mapping[str, str], limit: TextLimit) -> list[str]:
    """A note for the prompts, and for each kind of negative prompt, that are longer than the limit.

    `columns` holds the texts and the row of each clip, `cleaned` the text that is tokenized for each text. The
    tokenizer is loaded only if a text can be too long.
    """
    if not any(most_tokens(plain) > limit.tokens for plain in cleaned.values()):
        return []
    if limit.tokenizer is None:
        return _guess_note(columns, cleaned, limit.tokens)
    tokenizer = limit.tokenizer()
    counts = count_long(tokenizer, cleaned.values(), limit.tokens)
    long = {text: counts[plain] for text, plain in cleaned.items() if plain in counts}
    notes = []
    for name in ("prompt", *NEGATIVE_PROMPTS):
        texts = _texts_by_row(columns, name, long)
        if texts:
            example = cleaned[next(iter(texts.values()))]
            lost = example[len(kept_part(tokenizer, example, limit.tokens)) :].strip()
            notes.append(_note(name, {row: long[text] for row, text in texts.items()}, lost, limit.tokens))
    return notes


def _texts_by_row(columns: Mapping[str, list[Any]], name: str, wanted: Container[str]) -> dict[int, str]:
    """Row and text of the rows whose text of that name is wanted; repeats of a row count once."""
    return {row: text for row, text in zip(columns["row"], columns[name], strict=True) if text in wanted}


def _note(name: str, tokens_of: Mapping[int, int], lost: str, limit: int) -> str:
    """A note on the rows of `tokens_of`, with what is lost of the first."""
    first, tokens = next(iter(tokens_of.items()))
    what = f"{'an' if name.startswith('a') else 'a'} {name}"
    if len(tokens_of) == 1:
        subject, place = f"row {first} has {what} of {tokens:,} tokens", ""
    else:
        rows = [f"{row} ({tokens:,} tokens)" for row, tokens in tokens_of.items()]
        subject, place = f"{rows_have(rows)} {what} that is too long", f" in row {first}"
    return f"{subject}: only the first {limit} tokens are read, and the end is lost,{place} {_what_is_lost(lost)}"


def _what_is_lost(lost: str) -> str:
    begin = show(lost if len(lost) <= _LOST_CHARS else f"{lost[:_LOST_CHARS]}...")
    tags = (("speech", SPEECH_TAGS), ("the audio tag", SOUND_TAGS))
    parts = [what for what, spellings in tags if any(tag in lost for tag in spellings)]
    return f"with {' and '.join(parts)}, from {begin} on" if parts else f"from {begin} on"


def _guess_note(columns: Mapping[str, list[Any]], cleaned: Mapping[str, str], tokens: int) -> list[str]:
    guessed = {text for text, plain in cleaned.items() if len(plain.encode()) > _BYTES_PER_TOKEN * tokens}
    rows = sorted({row for name in ("prompt", *NEGATIVE_PROMPTS) for row in _texts_by_row(columns, name, guessed)})
    if not rows:
        return []
    return [
        f"{name_rows(rows)} may have a prompt that is longer than the {tokens} tokens that the text encoder reads; the"
        " tokenizer of a checkpoint folder (--ckpt-dir) counts them"
    ]
