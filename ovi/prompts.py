"""Prompts as the model reads them: the audio tag it was trained on, and text cleaned as the text encoder was trained.

A prompt marks speech with `<S>...<E>` and its soundtrack with one of the two forms of `ovi.config.AudioTag`.
"""

import html
import re

import ftfy

from ovi.config import AudioTag

_AUDCAP = re.compile(r"<AUDCAP>(.*?)<ENDAUDCAP>", re.DOTALL)
_AUDIO = re.compile(r"Audio:\s*(.*)", re.DOTALL)


def rewrite_audio_tag(text: str, audio_tag: AudioTag) -> tuple[str, bool]:
    """`text` with its soundtrack marked as `audio_tag`, and whether anything was rewritten.

    `Audio:` reaches to the end of the prompt, so only its first occurrence counts; every `<AUDCAP>` is rewritten.
    """
    if audio_tag is AudioTag.AUDCAP:
        rewritten = _AUDIO.sub(r"<AUDCAP>\1<ENDAUDCAP>", text)
    else:
        rewritten = _AUDCAP.sub(r"Audio: \1", text)
    return rewritten, rewritten != text


def clean(text: str) -> str:
    """`text` as it is tokenized: broken Unicode mended, HTML entities resolved, whitespace collapsed."""
    if not _is_plain(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _is_plain(text: str) -> bool:
    """Whether mending and unescaping would leave `text` as it is: a million prompts are cleaned in seconds."""
    return text.isascii() and text.isprintable() and "&" not in text
