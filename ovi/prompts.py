"""Prompt preparation: text cleaning as in the text encoder's training, then tags in the model's form."""

import html
from dataclasses import dataclass, replace

import ftfy

from ovi.config import AudioTag
from ovi.prompt_tags import TagFault, parse, render, trailing_faults


@dataclass(kw_only=True, slots=True, frozen=True)
class ModelPrompt:
    """A prompt in the form that a model was trained on."""

    text: str
    """The text to encode: as given where its tags are right, else rendered."""
    cleaned: str
    """The text as it is tokenized."""
    other_form: bool
    """Whether the soundtrack was marked in the other models' form."""
    faults: tuple[TagFault, ...]
    """Malformed tags, and how they were read."""


def in_model_form(text: str, form: AudioTag) -> ModelPrompt:
    """`text` with its tags in a model's form. A prompt that is right in this form is not changed."""
    cleaned = clean(text)
    prompt = parse(cleaned)
    faults = (*prompt.faults, *trailing_faults(prompt, form))
    other_form = prompt.form not in (None, form)
    rendered = render(prompt, form) if faults or other_form else cleaned
    if rendered == cleaned:
        return ModelPrompt(text=text, cleaned=cleaned, other_form=other_form, faults=faults)
    again = in_model_form(rendered, form)  # entities escaped twice too often, or a tag that lay in another tag
    return replace(again, other_form=other_form, faults=tuple(dict.fromkeys((*faults, *again.faults))))


def clean(text: str) -> str:
    """`text` as it is tokenized: mojibake repaired, HTML entities resolved, whitespace collapsed."""
    if not _is_plain(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _is_plain(text: str) -> bool:
    """Whether repairing and unescaping are no-ops; skipping them cleans a million ASCII prompts in seconds."""
    return text.isascii() and text.isprintable() and "&" not in text
