import html

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi.config import MODEL_SPECS, AudioTag
from ovi.prompts import clean, in_model_form


@pytest.mark.parametrize("model_name", MODEL_SPECS)
def test_audio_tags_are_rewritten_as_published(golden_json, model_name):
    form = MODEL_SPECS[model_name].audio_tag
    for text, expected in golden_json["format"][model_name]:
        prompt = in_model_form(text, form)
        assert prompt.cleaned == clean(expected)
        assert (prompt.text == text) == (text == expected)


def test_text_is_cleaned_as_published(golden_json):
    for text, expected in golden_json["clean"]:
        assert clean(text) == expected


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_the_fast_path_for_ascii_cleans_like_the_full_path(text):
    assert clean(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@given(st.text(st.characters(exclude_characters="<[{〈《⟨‹【＜&"), max_size=40))
def test_a_prompt_without_a_tag_is_not_changed(text):
    untagged = text.replace("udio", "")
    for form in AudioTag:
        prompt = in_model_form(untagged, form)
        assert (prompt.text, prompt.cleaned) == (untagged, clean(untagged))
        assert not prompt.other_form
        assert not prompt.faults
