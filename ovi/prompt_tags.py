"""Speech and soundtrack tags of a prompt, parsed once into a structure and rendered in a model's form (no torch).

    <S>words that are spoken<E>
    <AUDCAP>description of the sound<ENDAUDCAP>      or      Audio: description of the sound, to the end of the prompt

`Audio:` is a tag only where no `<AUDCAP>` is, and only outside of speech and of double quotes. The first one counts.

Nobody is stopped by a malformed tag. It is read as follows, and each reading is told as a `TagFault`:

- A tag in lower case, misspelt, with an attribute or in other brackets (`<audcap>`, `[AUDCAP]`, `<|S|>`, `<S:man>`, `<S man>`)
  is read as the tag meant.
- A tag that is not closed ends at the next tag, or at the end of the prompt.
- An end without a beginning is left out. Tags that no model knows (`<b>`) stay in the text, and so does `Audio:` in another
  language or word (`音频:`, `Sound:`) at the beginning of a sentence, which is told where a prompt has no other soundtrack.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from itertools import pairwise

from ovi.config import AudioTag

AUDIO_PREFIX = "Audio:"
SPEECH_TAGS = ("<S>", "<E>")
SOUND_TAGS = ("<AUDCAP>", "<ENDAUDCAP>", AUDIO_PREFIX)


@dataclass(slots=True, frozen=True)
class Speech:
    """Words that are spoken."""

    text: str


@dataclass(slots=True, frozen=True)
class Soundtrack:
    """A description of the sound. Speech in it is unusual, but occurs."""

    parts: "tuple[str | Speech, ...]"


Part = str | Speech | Soundtrack


class FaultKind(StrEnum):
    """Kinds of malformed tags; the value is what a prompt has, to be read after "row 3 has"."""

    MISSPELT = "tags that are misspelt"
    UNCLOSED = "tags that are not closed"
    UNOPENED = "end tags without a beginning"
    UNKNOWN = "tags that the model does not know"
    BOTH_FORMS = "both forms of the audio tag"
    SPEECH_IN_SOUND = "speech in the description of the sound"
    TEXT_AFTER_SOUND = "text after the description of the sound"


@dataclass(kw_only=True, slots=True, frozen=True)
class TagFault:
    """A malformed tag, and how it was read."""

    kind: FaultKind
    tag: str
    """The tag as it stands in the prompt."""
    reading: str
    """To be read after the tag, such as "read as <ENDAUDCAP>"."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TaggedPrompt:
    """A prompt by its parts. No two texts are neighbours, and none is empty."""

    parts: tuple[Part, ...]
    form: AudioTag | None = field(default=None, compare=False)
    """The form in which the soundtrack was written; None without one."""
    faults: tuple[TagFault, ...] = field(default=(), compare=False)


def parse(text: str) -> TaggedPrompt:
    """Read the tags of a cleaned prompt. Never raises; no word of the prompt is lost."""
    if not (_BRACKET.search(text) or ":" in text):
        return TaggedPrompt(parts=(text,) if text else ())
    return _with_audio_prefix(_Parser(text).prompt())


def render(prompt: TaggedPrompt, form: AudioTag) -> str:
    """The prompt with its soundtrack in the given form, its whitespace collapsed.

    `Audio:` extends to the end of the prompt, so what follows a soundtrack becomes part of it (`trailing_faults`).
    """
    if form is AudioTag.AUDCAP:
        return _collapse("".join(_spell(part) for part in prompt.parts))
    rendered, follows_sound = "", False
    for part in prompt.parts:
        is_sound = isinstance(part, Soundtrack)
        spelled = f"{AUDIO_PREFIX} {_inner(part)}" if isinstance(part, Soundtrack) else _spell(part)
        if (is_sound or follows_sound) and _WORD_PAIR.fullmatch(rendered[-1:] + spelled[:1]):
            rendered += " "  # a tag parted the two words
        rendered += spelled
        follows_sound = is_sound
    return _collapse(rendered)


def trailing_faults(prompt: TaggedPrompt, form: AudioTag) -> tuple[TagFault, ...]:
    """A fault where text after a soundtrack becomes part of it, because the prompt is rewritten to `Audio:`."""
    first = next((place for place, part in enumerate(prompt.parts) if isinstance(part, Soundtrack)), None)
    after = () if first is None else prompt.parts[first + 1 :]
    if form is not AudioTag.AUDIO or not any(character.isalnum() for part in after for character in _spell(part)):
        return ()
    reading = f"read as part of it, since {AUDIO_PREFIX} extends to the end of a prompt"
    return (TagFault(kind=FaultKind.TEXT_AFTER_SOUND, tag=_spell(after[0]).strip(), reading=reading),)


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _spell(part: Part) -> str:
    """A part in the form that has an end tag for everything."""
    match part:
        case Speech():
            return f"<S>{part.text}<E>"
        case Soundtrack():
            return f"<AUDCAP>{_inner(part)}<ENDAUDCAP>"
    return part


def _inner(soundtrack: Soundtrack) -> str:
    return "".join(_spell(part) for part in soundtrack.parts)


# -- tags ----------------------------------------------------------------------------------------------------------


class _Kind(Enum):
    SPEECH = auto()
    END_SPEECH = auto()
    SOUND = auto()
    END_SOUND = auto()
    END = auto()
    """The end of whatever is open."""
    UNKNOWN = auto()


_SPELLING = {
    _Kind.SPEECH: SPEECH_TAGS[0],
    _Kind.END_SPEECH: SPEECH_TAGS[1],
    _Kind.SOUND: SOUND_TAGS[0],
    _Kind.END_SOUND: SOUND_TAGS[1],
}
_BY_SPELLING = {spelled: kind for kind, spelled in _SPELLING.items()}
_KINDS = {
    "S": _Kind.SPEECH,
    "SPEECH": _Kind.SPEECH,
    "E": _Kind.END_SPEECH,
    "ENDS": _Kind.END_SPEECH,
    "ENDSPEECH": _Kind.END_SPEECH,
    "AUDCAP": _Kind.SOUND,
    "AUDIO": _Kind.SOUND,
    "AUDIOCAPTION": _Kind.SOUND,
    "ENDAUDCAP": _Kind.END_SOUND,
    "ENDAUDIO": _Kind.END_SOUND,
    "ENDAUDIOCAPTION": _Kind.END_SOUND,
    "END": _Kind.END,
}
"""The kind of a tag, by the letters of its name."""
_GUESSED = ("AUDCAP", "ENDAUDCAP")
"""Names that are long enough to be recognised when they are misspelt."""
_GUESS_CUTOFF = 0.75  # of difflib's ratio: AUDCAPS, ENDAUDCP and AUDIOCAP are near enough, CAPTION is not
_CLOSED_BY_SLASH = {_Kind.SPEECH: _Kind.END_SPEECH, _Kind.SOUND: _Kind.END_SOUND}
_SPEECH_KINDS = (_Kind.SPEECH, _Kind.END_SPEECH)

_OPEN, _CLOSE = r"<\[{〈《⟨‹【", r">\]}〉》⟩›】"
_BRACKET = re.compile(rf"[{_OPEN}]")
_UNSEEN = r"\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"  # characters of no width, which copied text often has
_GAP = rf"[\s{_UNSEEN}]*"
_ATTRIBUTE = rf"(?:[:=][\"'“”]?[\w {_UNSEEN}-]{{1,24}}[\"'“”]?)?"  # <S:narrator>, <S voice="man">
_TAG = re.compile(
    rf"([{_OPEN}])(?:\||[{_OPEN}])?{_GAP}(/?){_GAP}([^\W\d_][\w {_UNSEEN}-]{{0,24}}?)"
    rf"{_ATTRIBUTE}{_GAP}/?{_GAP}(?:\||[{_CLOSE}])?[{_CLOSE}]"
)
_WORD_END = re.compile(r"[\s_]")
_WORD_PAIR = re.compile(r"\w\w")
_AUDIO = re.compile(r"(?<!\w)Audio:")
_LOOSE_AUDIO = re.compile(r"(?<!\w)audio\s*:", re.IGNORECASE)
_OTHER_AUDIO = re.compile(
    r"(?<!\w)(?:áudio|аудио|аудіо|звук|ήχος|音频|音訊|音声|音響|声音|聲音|オーディオ|サウンド|오디오|소리|사운드|صوت|الصوت|ऑडियो|เสียง"
    r"|sounds?|sound effects?|soundtrack|sfx|sonido|son|suono|som|ton|klang|geräusche|geluid|dźwięk|ljud|lyd|ses|âm thanh)\s*:",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'(?<!\w)"[^"]*"(?!\w)|«[^»]*»')
_SENTENCE_END = (".", "!", "?", "…", '"', "'", "»", ")", "。", "！", "？")


@dataclass(kw_only=True, slots=True, frozen=True)
class _Tag:
    kind: _Kind
    start: int
    end: int
    spelled: str


def _tags(text: str) -> list[_Tag]:
    """The tags in brackets. `[S]` and `{S}` are tags only where the end of the speech follows in brackets alike."""
    found = [tag for match in _TAG.finditer(text) if (tag := _tag_of(match)) is not None]
    paired = set()
    for bracket in {tag.spelled[0] for tag in found} - {"<"}:
        speech = [tag for tag in found if tag.spelled[0] == bracket and tag.kind in _SPEECH_KINDS]
        for first, second in pairwise(speech):
            if (first.kind, second.kind) == _SPEECH_KINDS:
                paired |= {first.start, second.start}
    return [tag for tag in found if tag.spelled[0] == "<" or tag.kind not in _SPEECH_KINDS or tag.start in paired]


def _tag_of(match: re.Match[str]) -> _Tag | None:
    if (kind := _BY_SPELLING.get(match[0])) is not None:
        return _Tag(kind=kind, start=match.start(), end=match.end(), spelled=match[0])
    bracket, slash, name = match.groups()
    letters = "".join(character for character in name if character.isalpha()).upper()
    kind = _KINDS.get(letters) or _KINDS.get(_with_attribute(name))
    if kind is None:
        near = difflib.get_close_matches(letters, _GUESSED, n=1, cutoff=_GUESS_CUTOFF)
        kind = _KINDS[near[0]] if near else _Kind.UNKNOWN
    if slash:
        kind = _CLOSED_BY_SLASH.get(kind, kind)
    is_prose = bracket != "<" and (kind in (_Kind.UNKNOWN, _Kind.END) or letters in ("AUDIO", "SPEECH"))
    is_prose |= kind is _Kind.UNKNOWN and " " in (match[0][1], match[0][-2])  # a < b and c > d
    return None if is_prose else _Tag(kind=kind, start=match.start(), end=match.end(), spelled=match[0])


def _with_attribute(name: str) -> str:
    """The tag's own name where words follow it, as in <S man>; "" for other words, such as <Speech bubble>."""
    first = _WORD_END.split(name, maxsplit=1)[0]
    return first.upper() if f"<{first.upper()}>" in _BY_SPELLING else ""


# -- reading -------------------------------------------------------------------------------------------------------


class _Parser:
    """Reads the tags in brackets of one prompt from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tags = _tags(text)
        self.next = 0
        """Index of the first tag that is not read yet."""
        self.place = 0
        """Position in the text up to which it is read."""
        self.faults: list[TagFault] = []
        self.has_sound = any(tag.kind is _Kind.SOUND for tag in self.tags)

    def prompt(self) -> TaggedPrompt:
        """The whole prompt."""
        parts: list[Part] = []
        while (tag := self._take(parts)) is not None:
            match tag.kind:
                case _Kind.SPEECH:
                    parts += self._speech(tag)
                case _Kind.SOUND:
                    parts += self._soundtrack(tag)
                case _:
                    parts.append(self._loose(tag))
        form = AudioTag.AUDCAP if self.has_sound else None
        return TaggedPrompt(parts=_joined(parts), form=form, faults=tuple(self.faults))

    def _take(self, parts: list[Part], until: int | None = None) -> _Tag | None:
        """Read the text before the next tag into `parts`, then the tag, unless it begins at `until` or later."""
        end = len(self.text) if until is None else until
        tag = self.tags[self.next] if self.next < len(self.tags) else None
        if tag is None or tag.start >= end:
            parts.append(self.text[self.place : end])
            self.place = end
            return None
        parts.append(self.text[self.place : tag.start])
        self.place = tag.end
        self.next += 1
        return tag

    def _speech(self, opening: _Tag, enclosing_end: int | None = None) -> list[Part]:
        """The speech after `opening`. `enclosing_end` is where the soundtrack ends that the speech is in."""
        self._check_spelling(opening.spelled, opening.kind)
        ahead = next((tag for tag in self._ahead() if tag.kind is not _Kind.UNKNOWN), None)
        closing = ahead if ahead is not None and self._closes_speech(ahead, enclosing_end) else None
        end = len(self.text) if ahead is None else ahead.start
        if closing is None:
            end = self._end_of_unclosed_speech(end)
            self._fault(FaultKind.UNCLOSED, opening.spelled, f"closed {self._where(end)}")
        inner: list[Part] = []
        while (tag := self._take(inner, until=end)) is not None:
            inner.append(self._loose(tag))
        text = "".join(_spell(part) for part in inner)
        if closing is not None:
            self._close(closing, _Kind.END_SPEECH)
            return [Speech(text)]
        return [Speech(text.rstrip()), text[len(text.rstrip()) :]]

    def _closes_speech(self, tag: _Tag, enclosing_end: int | None) -> bool:
        """Whether the next tag ends a speech: its own end tag, or that of a soundtrack where none is open."""
        return tag.kind in (_Kind.END_SPEECH, _Kind.END) or (tag.kind is _Kind.END_SOUND and enclosing_end is None)

    def _end_of_unclosed_speech(self, end: int) -> int:
        """The end of a speech without an end tag: `end`, or the place before an `Audio:` that follows its words."""
        if self.has_sound:
            return end
        found = (match.start() for match in _AUDIO.finditer(self.text, self.place, end))
        return next((start for start in found if self.text[self.place : start].strip()), end)

    def _soundtrack(self, opening: _Tag) -> list[Part]:
        self._check_spelling(opening.spelled, opening.kind)
        closing = self._closing_of_sound()
        end = self._end_of_unclosed_sound() if closing is None else closing.start
        if closing is None:
            self._fault(FaultKind.UNCLOSED, opening.spelled, f"closed {self._where(end)}")
        inner: list[Part] = []
        while (tag := self._take(inner, until=end)) is not None:
            if tag.kind is _Kind.SPEECH:
                inner += self._speech(tag, enclosing_end=end)
                self._fault(FaultKind.SPEECH_IN_SOUND, tag.spelled, "left there")
            else:
                inner.append(self._loose(tag))
        if closing is not None:
            self._close(closing, _Kind.END_SOUND)
            return [Soundtrack(_inline(inner))]
        last = inner[-1] if inner and isinstance(inner[-1], str) else ""
        gap = last[len(last.rstrip()) :]
        return [Soundtrack(_inline([*inner[:-1], last.rstrip()] if last else inner)), gap]

    def _closing_of_sound(self) -> _Tag | None:
        """The tag that ends a soundtrack: its own end tag before another soundtrack, or else any end tag that comes next."""
        for tag in self._ahead():
            if tag.kind is _Kind.END_SOUND:
                return tag
            if tag.kind is _Kind.SOUND:
                break
        ahead = next((tag for tag in self._ahead() if tag.kind is not _Kind.UNKNOWN), None)
        return ahead if ahead is not None and ahead.kind in (_Kind.END_SPEECH, _Kind.END) else None

    def _end_of_unclosed_sound(self) -> int:
        opening = (_Kind.SPEECH, _Kind.SOUND)
        return next((tag.start for tag in self._ahead() if tag.kind in opening), len(self.text))

    def _ahead(self) -> Iterator[_Tag]:
        """The tags that are not read yet."""
        return map(self.tags.__getitem__, range(self.next, len(self.tags)))  # a slice would be quadratic

    def _close(self, closing: _Tag, kind: _Kind) -> None:
        """Read the end tag of what was read, which is the next tag."""
        self.place = closing.end
        self.next += 1
        self._check_spelling(closing.spelled, kind)

    def _loose(self, tag: _Tag) -> str:
        """The text in place of a tag that neither begins nor ends anything."""
        if tag.kind is _Kind.UNKNOWN:
            self._fault(FaultKind.UNKNOWN, tag.spelled, "left in the text")
            return tag.spelled
        self._fault(FaultKind.UNOPENED, tag.spelled, "left out")
        neighbours = self.text[max(tag.start - 1, 0) : tag.start] + self.text[tag.end : tag.end + 1]
        return " " if _WORD_PAIR.fullmatch(neighbours) else ""

    def _check_spelling(self, spelled: str, kind: _Kind) -> None:
        if spelled != _SPELLING[kind]:
            self._fault(FaultKind.MISSPELT, spelled, f"read as {_SPELLING[kind]}")

    def _where(self, end: int) -> str:
        return "at the end of the prompt" if end == len(self.text) else "before the next tag"

    def _fault(self, kind: FaultKind, tag: str, reading: str) -> None:
        self.faults.append(TagFault(kind=kind, tag=tag, reading=reading))


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with neighbouring texts joined and empty ones left out."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def _inline(parts: Sequence[Part]) -> tuple[str | Speech, ...]:
    return tuple(part for part in _joined(parts) if not isinstance(part, Soundtrack))


# -- Audio: --------------------------------------------------------------------------------------------------------


def _with_audio_prefix(prompt: TaggedPrompt) -> TaggedPrompt:
    """The prompt with the text after `Audio:` as its soundtrack, where `<AUDCAP>` does not mark one already."""
    faults = list(prompt.faults)
    if prompt.form is AudioTag.AUDCAP:
        if any(_unquoted(_AUDIO, part) for part in prompt.parts if isinstance(part, str)):
            reading = f"read as text, and {_SPELLING[_Kind.SOUND]} as the tag"
            faults.append(TagFault(kind=FaultKind.BOTH_FORMS, tag=AUDIO_PREFIX, reading=reading))
        parts = tuple(_without_prefix(part, faults) if isinstance(part, Soundtrack) else part for part in prompt.parts)
        return replace(prompt, parts=parts, faults=tuple(faults))
    found = next(_prefixes(prompt.parts, _AUDIO), None) or next(
        (place for place in _prefixes(prompt.parts, _LOOSE_AUDIO) if _begins_sentence(place[1])), None
    )
    if found is None:
        for _, match in _prefixes(prompt.parts, _LOOSE_AUDIO):
            faults.append(TagFault(kind=FaultKind.MISSPELT, tag=match[0], reading="left in the text"))
        for _, match in _prefixes(prompt.parts, _OTHER_AUDIO):
            if _begins_sentence(match):
                reading = f"left in the text, where {AUDIO_PREFIX} would be the tag"
                faults.append(TagFault(kind=FaultKind.UNKNOWN, tag=match[0], reading=reading))
        return replace(prompt, faults=tuple(faults))
    place, match = found
    if match[0] != AUDIO_PREFIX:
        faults.append(TagFault(kind=FaultKind.MISSPELT, tag=match[0], reading=f"read as {AUDIO_PREFIX}"))
    text = str(prompt.parts[place])
    sound = _inline([text[match.end() :].lstrip(), *prompt.parts[place + 1 :]])
    if any(isinstance(part, Speech) for part in sound):
        faults.append(TagFault(kind=FaultKind.SPEECH_IN_SOUND, tag=_SPELLING[_Kind.SPEECH], reading="left there"))
    parts = _joined([*prompt.parts[:place], text[: match.start()], Soundtrack(sound)])
    return TaggedPrompt(parts=parts, form=AudioTag.AUDIO, faults=tuple(faults))


def _without_prefix(soundtrack: Soundtrack, faults: list[TagFault]) -> Soundtrack:
    """The soundtrack without an `Audio:` that its description begins with, which is added to the faults."""
    first, *others = soundtrack.parts or ("",)
    match = _LOOSE_AUDIO.match(first.lstrip()) if isinstance(first, str) else None
    if match is None:
        return soundtrack
    faults.append(TagFault(kind=FaultKind.BOTH_FORMS, tag=match[0], reading="left out of the description of the sound"))
    return Soundtrack(_joined([str(first).lstrip()[match.end() :].lstrip(), *others]))  # type: ignore[arg-type]


def _prefixes(parts: Sequence[Part], pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """The places of a prefix outside of speech and quotes: the index of the part, and the match in it."""
    for place, part in enumerate(parts):
        if isinstance(part, str):
            yield from ((place, match) for match in _unquoted(pattern, part))


def _unquoted(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The matches outside of quotes. Quotes around the whole text, as files without quoting have them, do not count."""
    found = list(pattern.finditer(text)) if ":" in text else []
    if not found:
        return []
    quoted = [match.span() for match in _QUOTED.finditer(text) if match[0] != text.strip()]
    return [match for match in found if not any(start < match.start() < end for start, end in quoted)]


def _begins_sentence(match: re.Match[str]) -> bool:
    before = match.string[: match.start()].rstrip()
    return not before or before.endswith(_SENTENCE_END)
