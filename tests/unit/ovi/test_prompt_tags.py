"""Speech and soundtrack tags: what is right stays as it is, and what is malformed is read and told."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi.config import AudioTag
from ovi.prompt_tags import FaultKind, Soundtrack, Speech, TaggedPrompt, parse, render
from ovi.prompts import clean, in_model_form

AUDCAP, AUDIO = AudioTag.AUDCAP, AudioTag.AUDIO
QUICKSTART = Path(__file__).parents[3] / "jobs" / "quickstart" / "prompts.csv"

RIGHT = {
    AUDCAP: [
        "A man says <S>Audio: check, one two<E> and leaves. <AUDCAP>male voice<ENDAUDCAP>",
        'A sign reads "Radio Audio: 5 dollars". A man sings. <AUDCAP>rain<ENDAUDCAP>',
        "She says <S>Hi, <b if you can<E>. <AUDCAP> soft  wind <ENDAUDCAP>",
        "<AUDCAP>rain<ENDAUDCAP> A fox. <AUDCAP>wind<ENDAUDCAP> It runs.",
        "&lt;S&gt;Hi&lt;E&gt; ＜AUDCAP＞rain＜ENDAUDCAP＞",
        "<S>one<E><S>two<E><AUDCAP><ENDAUDCAP>",
        "a < b and c > d, [sic] {x} (S) [Audio] [S]",
        '"A fox."',
    ],
    AUDIO: [
        "A man says <S>Audio: check<E> and leaves. Audio: male voice",
        'A sign reads "Audio: 5 dollars". A man sings. Audio: rain',
        "A. Audio: one. Audio: two",
        "Audio:rain",
        "A fox.\nAudio:   wind,\n rain",
        "A fox, “Audio: on”. Audio：rain",
        '"A fox. Audio: rain"',
        "Her RadioAudio: is no tag. <S>Hi<E>",
    ],
}


@pytest.mark.parametrize(("form", "text"), [(form, text) for form, texts in RIGHT.items() for text in texts])
def test_a_right_prompt_is_not_changed_in_its_own_form(form, text):
    prompt = in_model_form(text, form)
    assert (prompt.text, prompt.cleaned) == (text, clean(text))
    assert (prompt.other_form, prompt.faults) == (False, ())


def test_the_published_kind_of_list_is_right():
    with QUICKSTART.open(encoding="utf-8", newline="") as file:
        prompts = [in_model_form(row["text_prompt"], AUDCAP) for row in csv.DictReader(file)]
    assert [prompt.faults for prompt in prompts] == [()] * 6
    assert [prompt.other_form for prompt in prompts] == [False, False, False, False, True, False]


@pytest.mark.parametrize(
    ("form", "text", "rewritten"),
    [
        (
            AUDIO,
            "A man says <S>Audio: check<E>. <AUDCAP>male voice<ENDAUDCAP>",
            "A man says <S>Audio: check<E>. Audio: male voice",
        ),
        (AUDIO, 'A sign: "Audio: on". <AUDCAP>rain<ENDAUDCAP>', 'A sign: "Audio: on". Audio: rain'),
        (AUDCAP, 'A sign: "Audio: on". Audio: rain', 'A sign: "Audio: on". <AUDCAP>rain<ENDAUDCAP>'),
        (AUDCAP, "<S>Audio: on<E> Audio: rain", "<S>Audio: on<E> <AUDCAP>rain<ENDAUDCAP>"),
        (AUDCAP, "A fox. Audio：rain", "A fox. <AUDCAP>rain<ENDAUDCAP>"),
        (AUDCAP, "A fox. Audio&#58; rain &amp;amp; wind", "A fox. <AUDCAP>rain & wind<ENDAUDCAP>"),
        (AUDIO, "A fox. &lt;AUDCAP&gt;rain&lt;ENDAUDCAP&gt;", "A fox. Audio: rain"),
        (AUDIO, "A fox. ＜AUDCAP＞rain＜ENDAUDCAP＞", "A fox. Audio: rain"),
        (AUDIO, "word<AUDCAP>rain<ENDAUDCAP>.", "word Audio: rain."),
        (AUDCAP, 'A 5" disc and a 7" one. Audio: rain', 'A 5" disc and a 7" one. <AUDCAP>rain<ENDAUDCAP>'),
    ],
)
def test_the_soundtrack_of_the_other_form_is_rewritten_and_nothing_else(form, text, rewritten):
    prompt = in_model_form(text, form)
    assert (prompt.cleaned, prompt.other_form, prompt.faults) == (rewritten, True, ())


@pytest.mark.parametrize(
    ("text", "reading", "kinds"),
    [
        ("A man. <AUDCAP>a song", "A man. <AUDCAP>a song<ENDAUDCAP>", {FaultKind.UNCLOSED}),
        ("A man. <audcap>a song<endaudcap>", "A man. <AUDCAP>a song<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A man. <AUDCAP>rain</AUDCAP>", "A man. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A man. <AUDCAPS>rain<ENDAUDIOCAP>", "A man. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A man. < Audcap >rain<END AUDCAP>", "A man. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A man. <AUDIO>rain</AUDIO>", "A man. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A man. [AUDCAP]rain[/AUDCAP]", "A man. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A man. 【AUDCAP】rain【ENDAUDCAP】", "A man. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("He says <s>hello</s> and leaves.", "He says <S>hello<E> and leaves.", {FaultKind.MISSPELT}),
        ("He says &lt;s&gt;hello&lt;/s&gt;.", "He says <S>hello<E>.", {FaultKind.MISSPELT}),
        ("He says [S]hello[E].", "He says <S>hello<E>.", {FaultKind.MISSPELT}),
        ("He says <S\u200b>hello<\u2060E>.", "He says <S>hello<E>.", {FaultKind.MISSPELT}),
        ("He says <speech>hello</speech>.", "He says <S>hello<E>.", {FaultKind.MISSPELT}),
        ("He says <S>hello<END>.", "He says <S>hello<E>.", {FaultKind.MISSPELT}),
        ("He says <S>hello and leaves.", "He says <S>hello and leaves.<E>", {FaultKind.UNCLOSED}),
        (
            "<S>Hi. <AUDCAP>birds<ENDAUDCAP>",
            "<S>Hi.<E> <AUDCAP>birds<ENDAUDCAP>",
            {FaultKind.UNCLOSED},
        ),
        ("<S>Hi. Audio: birds", "<S>Hi.<E> <AUDCAP>birds<ENDAUDCAP>", {FaultKind.UNCLOSED}),
        ("<AUDCAP>rain<E> <S>Hi<E>", "<AUDCAP>rain<ENDAUDCAP> <S>Hi<E>", {FaultKind.MISSPELT}),
        ("<AUDCAP>a <AUDCAP>b<ENDAUDCAP>", "<AUDCAP>a<ENDAUDCAP> <AUDCAP>b<ENDAUDCAP>", {FaultKind.UNCLOSED}),
        ("He says hello<E> twice.", "He says hello twice.", {FaultKind.UNOPENED}),
        ("A dog. Audio: rain<ENDAUDCAP>", "A dog. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.UNOPENED}),
        ("A <b>big</b> dog.<extra_id_0>", "A <b>big</b> dog.<extra_id_0>", {FaultKind.UNKNOWN}),
        ("A dog. audio: barking", "A dog. <AUDCAP>barking<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("He sets the audio: it hums.", "He sets the audio: it hums.", {FaultKind.MISSPELT}),
        ("狐狸说<S>你好<E>。音频：风声", "狐狸说<S>你好<E>。音频:风声", {FaultKind.UNKNOWN}),
        ("A fox runs. Sound: wind", "A fox runs. Sound: wind", {FaultKind.UNKNOWN}),
        ("Лиса. Аудио : ветер", "Лиса. Аудио : ветер", {FaultKind.UNKNOWN}),
        ("<S:man>Hi<E> <|S|>Ho<<E>>", "<S>Hi<E> <S>Ho<E>", {FaultKind.MISSPELT}),
        ("<S man>Hi<E> <s old man>Ho</s>", "<S>Hi<E> <S>Ho<E>", {FaultKind.MISSPELT}),
        ('<S voice="man">Hi<E> <S_woman>Ho<E man>', "<S>Hi<E> <S>Ho<E>", {FaultKind.MISSPELT}),
        ("A fox. <AUDCAP soft>rain<ENDAUDCAP>", "A fox. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.MISSPELT}),
        ("A <Speech bubble> and <End of scene>", "A <Speech bubble> and <End of scene>", {FaultKind.UNKNOWN}),
        ("A dog. <AUDCAP>Audio: rain<ENDAUDCAP>", "A dog. <AUDCAP>rain<ENDAUDCAP>", {FaultKind.BOTH_FORMS}),
        (
            "Audio: on. <AUDCAP>rain<ENDAUDCAP>",
            "Audio: on. <AUDCAP>rain<ENDAUDCAP>",
            {FaultKind.BOTH_FORMS},
        ),
        (
            "A dog. Audio: rain. He says <S>Hi<E>",
            "A dog. <AUDCAP>rain. He says <S>Hi<E><ENDAUDCAP>",
            {FaultKind.SPEECH_IN_SOUND},
        ),
        (
            "<AUDCAP>rain <s>Hi</s><ENDAUDCAP>",
            "<AUDCAP>rain <S>Hi<E><ENDAUDCAP>",
            {FaultKind.MISSPELT, FaultKind.SPEECH_IN_SOUND},
        ),
    ],
)
def test_a_malformed_tag_is_read_as_what_was_meant_and_told(text, reading, kinds):
    prompt = in_model_form(text, AUDCAP)
    assert prompt.cleaned == reading
    assert {fault.kind for fault in prompt.faults} == kinds


def test_text_after_the_sound_is_told_where_it_becomes_part_of_it():
    text = "A fox. <AUDCAP>rain<ENDAUDCAP> It runs."
    prompt = in_model_form(text, AUDIO)
    assert prompt.cleaned == "A fox. Audio: rain It runs."
    assert [fault.kind for fault in prompt.faults] == [FaultKind.TEXT_AFTER_SOUND]
    assert in_model_form(text, AUDCAP).faults == ()


# -- properties ----------------------------------------------------------------------------------------------------

# No accented Latin letters: cleaning repairs text that was decoded wrongly, which some sequences of them look like.
letters = st.characters(categories=["L", "N"], max_codepoint=0x7F) | st.sampled_from("雨猫歌")
words = st.text(letters, min_size=1, max_size=6).filter(
    lambda word: "audio" not in word.lower() and clean(word) == word
)
sentences = st.lists(words, min_size=1, max_size=4).map(" ".join)
speeches = st.builds(Speech, sentences | st.just("Audio: check"))
sounds = st.builds(Soundtrack, st.tuples(sentences))
spaced = sentences.map(lambda text: f" {text}. ")


def joined(parts):
    """Parts as a prompt has them: speech and sound parted by text, nothing around the whole."""
    parted = [item for part in parts for item in (" and ", part)][1:]
    return TaggedPrompt(parts=tuple(parted))


well_formed = st.lists(speeches | sounds, min_size=1, max_size=4).map(joined)
ending_in_sound = st.tuples(st.lists(speeches, max_size=3), sounds).map(lambda both: joined([*both[0], both[1]]))

spellings = [
    *("<S>", "<E>", "<s>", "</s>", "</S>", "[S]", "[E]", "<END>", "&lt;S&gt;", "＜E＞", "<b>"),
    *("<AUDCAP>", "<ENDAUDCAP>", "<audcap>", "</AUDCAP>", "[AUDCAP]", "<ENDAUDCPA>", "Audio:", "audio:", "Audio："),
]
messy = st.lists(
    words
    | st.sampled_from(spellings)
    | st.sampled_from([" ", ". ", '"', "<", ">", "&amp;lt;", "&", "S", "E", "«", "»"]),
    max_size=14,
).map("".join)
forms = st.sampled_from(AudioTag)


@given(well_formed)
def test_what_is_rendered_with_end_tags_is_parsed_as_the_same(prompt):
    assert parse(render(prompt, AUDCAP)) == prompt


@given(ending_in_sound)
def test_a_soundtrack_at_the_end_is_the_same_in_both_forms(prompt):
    assert parse(render(prompt, AUDIO)) == prompt
    assert render(parse(render(prompt, AUDIO)), AUDCAP) == render(prompt, AUDCAP)


@given(well_formed)
def test_well_formed_prompts_are_right_in_their_own_form(prompt):
    text = render(prompt, AUDCAP)
    assert (in_model_form(text, AUDCAP).text, in_model_form(text, AUDCAP).faults) == (text, ())


@given(messy | st.text(max_size=30), forms)
def test_a_prompt_in_a_models_form_is_not_changed_again(text, form):
    once = in_model_form(text, form)
    twice = in_model_form(once.text, form)
    assert clean(once.text) == once.cleaned == twice.cleaned
    assert not twice.other_form


@given(messy, forms)
def test_a_prompt_without_faults_keeps_its_words_and_one_with_faults_is_told(text, form):
    prompt = in_model_form(text, form)
    if not prompt.faults and not prompt.other_form:
        assert prompt.text == text


@given(st.lists(st.tuples(words.map(lambda word: f"w{word}w"), st.sampled_from(["", *spellings])), max_size=8), forms)
def test_no_word_is_lost(pieces, form):
    text = " ".join(f"{tag} {word}" for word, tag in pieces)
    found = iter(re.findall(r"w[^\W_]+w", in_model_form(text, form).cleaned))
    assert all(word in found for word, _ in pieces)


@given(st.lists(words, min_size=1, max_size=3), st.lists(words, max_size=3), forms)
def test_what_is_marked_as_speech_is_spoken(spoken, rest, form):
    text = f"<S>{' '.join(spoken)}<E> {' '.join(rest)} <AUDCAP>rain<ENDAUDCAP>"
    assert f"<S>{' '.join(spoken)}<E>" in in_model_form(text, form).cleaned
