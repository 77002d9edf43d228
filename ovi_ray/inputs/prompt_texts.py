"""The prompts of a list as their models read them, with notes on what was not as it should be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovi.config import Architecture, AudioTag
from ovi.prompt_tags import FaultKind
from ovi.prompts import ModelPrompt, clean, in_model_form
from ovi_ray.errors import show
from ovi_ray.inputs.columns import PROMPT_COLUMN
from ovi_ray.inputs.notes import rows_have
from ovi_ray.inputs.params import NEGATIVE_PROMPTS
from ovi_ray.inputs.prompt_lists import PromptList

_MAX_READINGS = 4  # examples in a note
_EXAMPLE_CHARS = 40
_LOST = "\ufffd"


@dataclass(kw_only=True, slots=True, frozen=True)
class PromptTexts:
    """The texts of all rows."""

    prompts: list[str]
    """The prompt of each row in its model's form."""
    cleaned: dict[str, str]
    """Each distinct prompt and negative prompt, and the text that is tokenized for it."""
    notes: list[str]


def prepare_texts(prompts: PromptList, columns: Mapping[str, list[Any]], arch: Architecture) -> PromptTexts:
    """The texts of checked rows. `columns` holds the prompts, the negative prompts and the model of each row."""
    texts = columns[PROMPT_COLUMN]
    form_of = {name: arch.spec(name).audio_tag for name in set(columns["model_name"])}
    pairs = [(text, form_of[name]) for text, name in zip(texts, columns["model_name"], strict=True)]
    read_as = {pair: in_model_form(*pair) for pair in dict.fromkeys(pairs)}
    read = [read_as[pair] for pair in pairs]
    cleaned = {prompt.text: prompt.cleaned for prompt in read_as.values()}
    for name in NEGATIVE_PROMPTS:
        cleaned.update((text, clean(text)) for text in set(columns[name]) if text not in cleaned)
    notes = [
        *_other_form_note(prompts, texts, read),
        *_fault_notes(prompts, read),
        *_untidy_note(prompts, texts),
        *_lost_notes(prompts, columns, _cleaned_columns(columns, read, cleaned)),
    ]
    return PromptTexts(prompts=[prompt.text for prompt in read], cleaned=cleaned, notes=notes)


def _cleaned_columns(
    columns: Mapping[str, list[Any]], read: Sequence[ModelPrompt], cleaned: Mapping[str, str]
) -> dict[str, list[str]]:
    negative = {name: [cleaned[text] for text in columns[name]] for name in NEGATIVE_PROMPTS}
    return {PROMPT_COLUMN: [prompt.cleaned for prompt in read], **negative}


def _other_form_note(prompts: PromptList, texts: Sequence[str], read: Sequence[ModelPrompt]) -> list[str]:
    places = [place for place, prompt in enumerate(read) if prompt.other_form]
    if not places:
        return []
    before, after = _around_tag(clean(texts[places[0]])), _around_tag(read[places[0]].cleaned)
    subject = rows_have([prompts.rows[place] for place in places])
    return [f"{subject} an audio tag in another form than the model's, which is rewritten: {before} became {after}"]


def _around_tag(text: str) -> str:
    tags = [form.value.partition("...")[0].strip().lower() for form in AudioTag]
    start = min((at for tag in tags if (at := text.lower().find(tag)) >= 0), default=0)
    part = text[start : start + _EXAMPLE_CHARS]
    return show(part if len(text) <= start + _EXAMPLE_CHARS else f"{part}...")


def _fault_notes(prompts: PromptList, read: Sequence[ModelPrompt]) -> list[str]:
    """A note for each kind of malformed tag, with its rows and how such tags were read."""
    rows: dict[FaultKind, list[int]] = {}
    readings: dict[FaultKind, dict[tuple[str, str], int]] = {}
    for place, prompt in enumerate(read):
        for fault in prompt.faults:
            readings.setdefault(fault.kind, {}).setdefault((fault.tag, fault.reading), prompts.rows[place])
        for kind in dict.fromkeys(fault.kind for fault in prompt.faults):
            rows.setdefault(kind, []).append(prompts.rows[place])
    return [f"{rows_have(rows[kind])} {kind}: {_examples(readings[kind])}" for kind in FaultKind if kind in rows]


def _examples(readings: Mapping[tuple[str, str], int]) -> str:
    shown = [f"{show(tag)} {reading} (row {row})" for (tag, reading), row in list(readings.items())[:_MAX_READINGS]]
    more = len(readings) - len(shown)
    return ", ".join(shown) + (f", and {more:,} more" if more else "")


def _untidy_note(prompts: PromptList, texts: Sequence[str]) -> list[str]:
    rows = [prompts.rows[place] for place, text in enumerate(texts) if " ".join(text.split()) != text]
    return [f"{rows_have(rows)} extra spaces or line breaks, which are ignored"] if rows else []


def _lost_notes(
    prompts: PromptList, given: Mapping[str, Sequence[str]], cleaned: Mapping[str, Sequence[str]]
) -> list[str]:
    """Notes on characters that an earlier conversion lost; some show when a text is cleaned, as in "caf&#0;"."""
    notes = []
    for name, texts in cleaned.items():
        places = [place for place, text in enumerate(texts) if _LOST in text]
        if not places:
            continue
        first = texts[places[0]]
        at = first.index(_LOST)
        part = first[max(0, at - _EXAMPLE_CHARS // 2) : at + _EXAMPLE_CHARS // 2]
        origin = "in the list itself" if _LOST in given[name][places[0]] else "as an escape"
        subject = rows_have([prompts.rows[place] for place in places])
        notes.append(
            f"{subject} the character U+FFFD in {name} ({show(part)}), {origin}: a program that read the text in another"
            " encoding put it in place of what it could not read, and only the source of the text has that"
        )
    return notes
