import html

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi.config import MODEL_SPECS, AudioTag
from ovi.prompts import clean, rewrite_audio_tag


@pytest.mark.parametrize("model_name", MODEL_SPECS)
def test_audio_tags_are_rewritten_as_published(golden_json, model_name):
    for text, expected in golden_json["format"][model_name]:
        rewritten, changed = rewrite_audio_tag(text, MODEL_SPECS[model_name].audio_tag)
        assert rewritten == expected
        assert changed == (text != expected)


def test_text_is_cleaned_as_published(golden_json):
    for text, expected in golden_json["clean"]:
        assert clean(text) == expected


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_the_fast_path_for_ascii_cleans_like_the_full_path(text):
    assert clean(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@given(st.text(max_size=40))
def test_a_prompt_without_a_tag_is_not_changed(text):
    untagged = text.replace("Audio:", "").replace("<AUDCAP>", "")
    for tag in AudioTag:
        assert rewrite_audio_tag(untagged, tag) == (untagged, False)
