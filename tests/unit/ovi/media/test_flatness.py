"""A picture of one colour throughout, and silence."""

import numpy as np
import pytest

from ovi.media.flatness import Flatness

SOUND = np.sin(np.arange(1600, dtype=np.float32))


def flat_frames(*colours, frames=2):
    return [np.broadcast_to(np.uint8(colour), (frames, 4, 4, 3)).copy() for colour in colours]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (flat_frames((1, 2, 3)), True),
        (flat_frames((0, 0, 0), (0, 0, 0)), True),
        (flat_frames((0, 0, 0), (0, 0, 1)), False),  # each chunk is flat, and the clip is not
        (flat_frames((9, 9, 9), (9, 8, 9), (9, 9, 9)), False),
    ],
)
def test_a_picture_is_flat_where_every_pixel_of_every_frame_has_one_colour(chunks, expected):
    flatness = Flatness(SOUND)
    for chunk in chunks:
        flatness.add(chunk)
    assert flatness.is_one_colour is expected


def test_one_pixel_of_the_last_frame_is_content():
    flatness = Flatness(SOUND)
    (chunk,) = flat_frames((5, 5, 5), frames=4)
    flatness.add(chunk)
    chunk[-1, -1, -1, -1] = 6
    flatness.add(chunk)
    assert flatness.notes == ()


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (np.zeros(1600, np.float32), True),
        (np.full(1600, 0.3, np.float32), True),  # a constant is not heard
        (SOUND * 1e-6, True),  # less than one step of 16-bit sound
        (SOUND * 1e-3, False),
        (SOUND, False),
    ],
)
def test_sound_is_silent_where_it_does_not_move(audio, expected):
    assert Flatness(audio).is_silent is expected


def test_the_notes_name_what_is_missing():
    flatness = Flatness(np.zeros(16, np.float32))
    flatness.add(flat_frames((0, 0, 0))[0])
    assert flatness.notes == ("shows one colour throughout", "is silent throughout")
