"""Prompt preparation: soundtrack markup in the model's form, and text cleaning as in the text encoder's training.

Speech is marked with `<S>...<E>`, the soundtrack with one of the two forms of `ovi.config.AudioTag`.
"""

import html
import re

import ftfy

from ovi.config import AudioTag

_AUDCAP = re.compile(r"<AUDCAP>(.*?)<ENDAUDCAP>", re.DOTALL)
_AUDIO = re.compile(r"Audio:\s*(.*)", re.DOTALL)


def rewrite_audio_tag(text: str, audio_tag: AudioTag) -> tuple[str, bool]:
    """`text` with its soundtrack markup in the form `audio_tag`, and whether anything changed.

    `Audio:` extends to the end of the prompt, so only its first occurrence is markup; every `<AUDCAP>` is rewritten.
    """
    if audio_tag is AudioTag.AUDCAP:
        rewritten = _AUDIO.sub(r"<AUDCAP>\1<ENDAUDCAP>", text)
    else:
        rewritten = _AUDCAP.sub(r"Audio: \1", text)
    return rewritten, rewritten != text


def clean(text: str) -> str:
    """`text` as it is tokenized: mojibake repaired, HTML entities resolved, whitespace collapsed."""
    if not _is_plain(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _is_plain(text: str) -> bool:
    """Whether repairing and unescaping are no-ops; skipping them cleans a million ASCII prompts in seconds."""
    return text.isascii() and text.isprintable() and "&" not in text
