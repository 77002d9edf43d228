"""Whatever the format, mode or orientation, the picture that is read is the picture that was drawn."""

import io
import struct
import threading
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from ovi.errors import InvalidImage
from ovi.media.image_files import decode_image, decode_opened, quiet_pillow
from ovi.media.images import read_image

SIZE = (48, 32)
"""(width, height) of the picture that is drawn: not square, so that a turn shows."""
ORIENTATION = 0x0112
TURNED_FROM_UPRIGHT = {
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
"""The form in which a camera stores an upright picture that it marks with an orientation."""
LOSSLESS = {
    "PNG": {},
    "TIFF": {},
    "TIFF deflate": {"compression": "tiff_deflate"},
    "BMP": {},
    "GIF": {},
    "WEBP": {"lossless": True, "exact": True},
    "TGA": {},
    "PPM": {},
    "JPEG2000": {},
    "QOI": {},
    "SGI": {},
    "PCX": {},
}
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"),
    "TIFF deflate": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "WEBP": ("L", "RGB", "RGBA"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16", "I", "F"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "QOI": ("RGB", "RGBA"),
    "SGI": ("L", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
}
WITH_ORIENTATION = ("PNG", "TIFF", "TIFF deflate", "WEBP", "JPEG", "AVIF", "MPO")
TOLERANCE = {"YCbCr": 3, "LAB": 3}  # levels; conversions that round
LOSSY = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "MPO": {"quality": 95},
}


def drawing(size=SIZE):
    """A smooth picture without a symmetry, in 32 colours: RGB."""
    width, height = size
    across = np.arange(width)[None] * 7 // width * 36
    down = np.arange(height)[:, None] * 4 // height * 64
    return Image.fromarray(np.stack(np.broadcast_arrays(across, down, (across + down) // 2), -1).astype(np.uint8))


def in_mode(picture, mode):
    """(the picture in a mode of Pillow, the RGB pixels that should be read)."""
    grey = picture.convert("L")
    levels = np.asarray(grey)
    match mode:
        case "1":
            stored = grey.convert("1")
            return stored, stored.convert("RGB")
        case "L":
            return grey, grey.convert("RGB")
        case "LA" | "RGBA":
            alpha = Image.fromarray(np.tile(np.array([255, 0], np.uint8), (picture.height, picture.width // 2)))
            stored = (grey if mode == "LA" else picture).copy()
            shown = Image.composite(stored.convert("RGB"), Image.new("RGB", picture.size, "white"), alpha)
            stored.putalpha(alpha)
            return stored, shown
        case "P":
            return picture.quantize(64), picture.quantize(64).convert("RGB")
        case "I;16" | "I;16B":
            deep = Image.fromarray((levels.astype(np.uint16) << 8) + 77)
            return (deep if mode == "I;16" else deep.convert("I").convert("I;16B")), grey.convert("RGB")
        case "I":
            return Image.fromarray((levels.astype(np.int32) << 8) + 77), grey.convert("RGB")
        case "F":
            return Image.fromarray(levels.astype(np.float32) / 255), grey.convert("RGB")
        case "LAB":
            to_lab = ImageCms.buildTransform(
                ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
            )
            pale = Image.blend(
                picture, Image.new("RGB", picture.size, "gray"), 0.7
            )  # Lab of 8 bits is coarse elsewhere
            return ImageCms.applyTransform(pale, to_lab), pale
        case "RGB":
            return picture, picture
        case _:
            return picture.convert(mode), picture.convert(mode).convert("RGB")


def encode(image, kind, orientation=1, **options):
    exif = Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [ImageOps.invert(image)]}
    image.save(buffer, kind.split()[0], **LOSSLESS.get(kind, {}), **LOSSY.get(kind, {}), **options)
    return buffer.getvalue()


def difference(read, drawn):
    drawn = np.asarray(drawn)
    assert read.shape == drawn.shape
    return int(np.abs(read.astype(int) - drawn.astype(int)).max())


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_the_picture_read_is_the_picture_drawn(kind, mode):
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this build of Pillow has no JPEG 2000")
    stored, drawn = in_mode(drawing(), mode)
    assert difference(decode_image(encode(stored, kind)).pixels, drawn) <= TOLERANCE.get(mode, 1)


@given(
    kind=st.sampled_from(WITH_ORIENTATION),
    orientation=st.sampled_from(sorted(TURNED_FROM_UPRIGHT)),
    size=st.tuples(st.sampled_from((16, 32, 48)), st.sampled_from((16, 32, 48))),
    mode=st.sampled_from(("L", "RGB", "RGBA", "P", "I;16", "F")),
)
@settings(max_examples=150, deadline=None)
def test_an_orientation_is_applied_exactly_once(kind, orientation, size, mode):
    mode = mode if kind in LOSSLESS and mode in MODES[kind] else "RGB"
    stored, _ = in_mode(TURNED_FROM_UPRIGHT[orientation](drawing(size)), mode)
    _, drawn = in_mode(drawing(size), mode)
    if mode == "RGBA":  # its transparent stripes were drawn on the turned picture
        drawn = TURNED_FROM_UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)](
            in_mode(turned(size, orientation), mode)[1]
        )
    content = encode(stored, kind, orientation)
    assert difference(decode_image(content).pixels, drawn) <= (48 if kind in LOSSY else 1)
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(read_image(opened), decode_image(content).pixels)


def turned(size, orientation):
    return TURNED_FROM_UPRIGHT[orientation](drawing(size))


# -- depth ---------------------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 256)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (RAMP.astype(np.float32), "0 (black) to 1 (white)"),
        ((RAMP * 1.5).clip(0, 1.2).astype(np.float32), "0 (black) to 1 (white)"),
        ((RAMP * 255).astype(np.float32), "0 (black) to 255 (white)"),
        ((RAMP * 65_535).astype(np.float32), "0 (black) to 65,535 (white)"),
        ((RAMP * 255).astype(np.int32), "0 (black) to 255 (white)"),
        ((RAMP * 65_535).astype(np.int32), "0 (black) to 65,535 (white)"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "0 (black) to 2,147,483,647 (white)"),
    ],
)
def test_the_range_of_wide_numbers_is_inferred_and_told(values, says):
    image = decode_image(encode(Image.fromarray(values.reshape(16, 16)), "TIFF"))
    expected = np.minimum(values / (values.max() if "1 (white)" not in says else 1), 1).reshape(16, 16) * 255
    assert difference(image.pixels, np.repeat(expected.round()[..., None], 3, -1)) <= 1
    assert says in image.remarks[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_floats_without_a_range_are_refused(value):
    values = np.full((8, 8), value, np.float32)
    with pytest.raises(InvalidImage, match=r"not numbers|floats up to 1e\+09"):
        decode_image(encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("bits", "tags"), [(16, {262: 0}), (12, {}), (16, {339: 2})], ids=["white is zero", "12 bits", "signed"]
)
def test_a_tiff_says_what_white_is(bits, tags):
    levels = (RAMP * 255).round().astype(np.uint16).reshape(16, 16)
    match tags:
        case {262: 0}:
            values = (255 - levels) << 8
        case {339: 2}:
            values = levels << 7
        case _:
            values = levels << 4
    raw = values.astype("<u2").tobytes() if bits == 16 else packed_12_bits(values)
    image = decode_image(tiff(raw, {256: 16, 257: 16, 258: bits, 262: 1, 277: 1, 278: 16, **tags}))
    assert difference(image.pixels, np.repeat(levels[..., None], 3, -1)) <= 1


def tiff(raw, tags):
    """An uncompressed little-endian TIFF of one strip."""
    tags = {**tags, 259: 1, 273: 8 + 2 + 12 * (len(tags) + 3) + 4, 279: len(raw)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + raw


def packed_12_bits(values):
    first, second = values.reshape(-1, 2).T.astype(np.uint32)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()


# -- transparency --------------------------------------------------------------------------------------------------


def test_hidden_colours_do_not_show():
    hidden = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    for kind in ("PNG", "WEBP", "TIFF", "AVIF"):
        image = decode_image(encode(hidden, kind))
        assert (image.pixels == 255).all()
        assert image.is_converted
        assert image.remarks == ("with transparent parts, which are shown on white",)


def test_half_transparent_parts_let_half_of_the_background_through():
    image = decode_image(encode(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "PNG"))
    assert np.unique(image.pixels).tolist() == [127]


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (drawing().quantize(32), {"transparency": 3}),
        (drawing().quantize(32), {"transparency": bytes([255, 255, 255, 0] + [255] * 28)}),
        (drawing().convert("L"), {"transparency": int(np.asarray(drawing().convert("L"))[0, 0])}),
        (drawing(), {"transparency": tuple(np.asarray(drawing())[0, 0].tolist())}),
        (Image.fromarray(np.tile(np.array([1000, 2000], np.uint16), (32, 24))), {"transparency": 1000}),
    ],
    ids=["palette", "palette with alphas", "grey", "colour", "16-bit grey"],
)
def test_a_transparent_colour_is_shown_on_white(image, options):
    shown, opaque = (decode_image(encode(image, "PNG", **chosen)) for chosen in (options, {}))
    changed = (shown.pixels != opaque.pixels).any(-1)
    assert 0 < changed.sum() < changed.size
    assert (shown.pixels[changed] == 255).all()
    assert shown.remarks == ("with transparent parts, which are shown on white",)


def test_a_transparent_colour_of_a_16_bit_png_is_found():
    pixels = np.zeros((8, 8, 3), ">u2")
    pixels[:, :4] = (40_000, 20_000, 10_000)
    key = struct.pack(">3H", 40_000, 20_000, 10_000)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    ihdr = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = png([(b"IHDR", ihdr), (b"tRNS", key), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    image = decode_image(content)
    assert (image.pixels[:, :4] == 255).all()
    assert (image.pixels[:, 4:] == 0).all()


def test_an_opaque_alpha_changes_nothing():
    image = decode_image(encode(drawing().convert("RGBA"), "PNG"))
    assert difference(image.pixels, drawing()) == 0
    assert (image.remarks, image.is_converted) == ((), False)


def test_of_an_animation_the_first_frame_is_read():
    frames = [drawing(), ImageOps.invert(drawing()), drawing()]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        pixels = decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:])).pixels
        assert difference(pixels, drawing()) <= 60


# -- colour --------------------------------------------------------------------------------------------------------


def swapped_profile():
    """A profile whose red is sRGB's blue and whose blue is its red: what it changes is plain to see."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = int.from_bytes(profile[128:132])
    table = {profile[132 + 12 * i : 136 + 12 * i]: 132 + 12 * i for i in range(count)}
    red, blue = table[b"rXYZ"], table[b"bXYZ"]
    swapped = bytearray(profile)
    swapped[red + 4 : red + 12], swapped[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(swapped)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_converted_from_the_embedded_profile(kind, mode):
    picture = Image.new("RGB", SIZE, (200, 40, 90))
    picture = picture.quantize(8) if mode == "P" else picture.convert(mode)
    picture = picture if mode in MODES.get(kind, ()) else picture.convert("RGB")
    image = decode_image(encode(picture, kind, icc_profile=swapped_profile()))
    red, green, blue = np.asarray(picture.convert("RGB"))[0, 0]
    drawn = np.broadcast_to(np.array([blue, green, red]), image.pixels.shape)
    assert difference(image.pixels, drawn) <= (8 if kind in LOSSY else 3)
    assert "converted from the profile" in image.remarks[0]
    assert image.is_converted


def test_grey_pixels_are_the_same_in_every_profile_with_the_same_white():
    noise = Image.effect_noise(SIZE, 90)
    image = decode_image(encode(noise, "PNG", icc_profile=swapped_profile()))
    assert difference(image.pixels, noise.convert("RGB")) == 0
    assert (image.remarks, image.is_converted) == ((), False)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_profile_of_srgb_changes_no_pixel(mode):
    noise = Image.effect_noise(SIZE, 90).convert(mode)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = decode_image(encode(noise, "PNG", icc_profile=srgb))
    assert difference(image.pixels, noise.convert("RGB")) == 0
    assert (image.remarks, image.is_converted) == ((), False)


@pytest.mark.parametrize("profile", [b"no profile", swapped_profile()[:300]])
def test_a_profile_that_cannot_be_used_is_ignored_and_told(profile):
    image = decode_image(encode(drawing(), "TIFF", icc_profile=profile))
    assert difference(image.pixels, drawing()) == 0
    assert image.remarks == ("with a colour profile that cannot be used, and is ignored",)
    assert not image.is_converted


def with_chunks(picture, *chunks):
    """A PNG with these chunks, (kind, data), before its pixels."""
    content = encode(picture, "PNG")
    added = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return content[:33] + added + content[33:]


def gamma(value):
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def points(white, red, green, blue):
    return b"cHRM", struct.pack(
        ">8I", *(round(value * 100_000) for point in (white, red, green, blue) for value in point)
    )


SRGB_POINTS = points((0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_POINTS = points((0.3127, 0.3290), (0.68, 0.32), (0.265, 0.69), (0.15, 0.06))


@pytest.mark.parametrize(
    ("chunks", "stored", "shown"),
    [
        ([gamma(1.0)], (128, 128, 128), (188, 188, 188)),
        ([gamma(1 / 1.8)], (128, 128, 128), (147, 147, 147)),
        ([gamma(1 / 2.2), P3_POINTS], (200, 100, 50), (215, 93, 31)),
        ([P3_POINTS], (200, 100, 50), (215, 93, 31)),
        ([(b"cICP", bytes((12, 13, 0, 1)))], (200, 100, 50), (215, 93, 31)),
        ([(b"cICP", bytes((1, 8, 0, 1))), (b"sRGB", b"\0")], (128, 128, 128), (188, 188, 188)),
    ],
)
def test_colours_that_the_chunks_of_a_png_describe_are_converted_to_srgb(chunks, stored, shown):
    image = decode_image(with_chunks(Image.new("RGB", SIZE, stored), *chunks))
    assert difference(image.pixels, Image.new("RGB", SIZE, shown)) <= 2
    assert "converted from the profile" in image.remarks[0]
    assert image.is_converted


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_linear_png_of_any_mode_is_brightened(mode):
    stored = Image.fromarray(np.full(SIZE[::-1], 128 << 8, np.uint16)) if mode == "I;16" else None
    image = decode_image(with_chunks(stored or Image.new("L", SIZE, 128).convert(mode), gamma(1.0)))
    assert difference(image.pixels, Image.new("RGB", SIZE, (188, 188, 188))) <= 2


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma(0.45455)],
        [gamma(0.45455), SRGB_POINTS],
        [SRGB_POINTS],
        [gamma(1.0), (b"sRGB", b"\0")],
        [gamma(1.0), (b"cICP", bytes((1, 13, 0, 1)))],
        [gamma(0)],
        [(b"gAMA", b"\0\0")],
    ],
)
def test_chunks_that_describe_srgb_or_nothing_change_no_pixel(chunks):
    image = decode_image(with_chunks(drawing(), *chunks))
    assert difference(image.pixels, drawing()) == 0
    assert (image.remarks, image.is_converted) == ((), False)


@pytest.mark.parametrize(
    ("chunk", "told"),
    [
        ((b"cICP", bytes((9, 16, 0, 1))), "HDR (PQ)"),
        ((b"cICP", bytes((9, 18, 0, 1))), "HDR (HLG)"),
        ((b"cICP", bytes((99, 13, 0, 1))), "cICP 99, 13, 0, 1"),
        ((b"cICP", bytes((1, 13, 0, 0))), "cICP 1, 13, 0, 0"),
        (points((0, 0), (0, 0), (0, 0), (0, 0)), "cannot be used"),
        ((b"iCCP", b"x\0\0no zlib"), "cannot be used"),
    ],
)
def test_colours_that_cannot_be_converted_are_read_as_srgb_and_told(chunk, told):
    image = decode_image(with_chunks(drawing(), chunk))
    assert difference(image.pixels, drawing()) == 0
    assert told in image.remarks[0]
    assert not image.is_converted


def test_an_inverted_cmyk_jpeg_has_its_colours():
    image = decode_image(encode(Image.new("CMYK", SIZE, (0, 200, 200, 0)), "JPEG"))
    assert difference(image.pixels, np.broadcast_to(np.array([255, 55, 55]), image.pixels.shape)) <= 3


# -- metadata ------------------------------------------------------------------------------------------------------


def png(chunks):
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_large_metadata_is_not_damage():
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * (5 << 20), zip=True)
    info.add_itxt("workflow", "y" * (5 << 20), zip=True)
    info.add_text("parameters", "z" * (70 << 20))
    for content in (
        encode(drawing(), "PNG", pnginfo=info),
        encode(drawing(), "PNG", icc_profile=swapped_profile() + bytes(3 << 20)),
        encode(drawing(), "WEBP", exif=exif_of(4 << 20)),
        encode(drawing(), "TIFF", exif=exif_of(4 << 20)),
    ):
        assert decode_image(content).pixels.shape == (SIZE[1], SIZE[0], 3)


def exif_of(size):
    exif = Image.Exif()
    exif[0x010E] = "d" * size
    return exif


def test_an_orientation_in_the_text_of_a_png_still_counts():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>', zip=True)
    content = encode(TURNED_FROM_UPRIGHT[6](drawing()), "PNG", pnginfo=info)
    assert difference(decode_image(content).pixels, drawing()) == 0


def test_a_wrong_checksum_of_a_text_is_not_damage():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "hello")
    content = bytearray(encode(drawing(), "PNG", pnginfo=info))
    content[content.index(b"hello")] ^= 1
    assert difference(decode_image(bytes(content)).pixels, drawing()) == 0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE HTML><html>404</html>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "a HEIC image"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(50), "an AVIF image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(50), "a video"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript drawing"),
        (b"\xff\x0a" + bytes(40), "a JPEG XL image"),
        (b"\x76\x2f\x31\x01" + bytes(40), "an OpenEXR image"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a damaged or truncated PNG"),
        (b"II*\0\xff\xff\xff\x7f", "a TIFF image"),
        (b"just text", "a file that is not an image"),
        (tiff(bytes(256), {256: 16, 257: 16, 258: 8, 262: 1, 277: 1, 278: 16, 50_706: 1}), "a raw photo"),
        (tiff(bytes(256), {254: 1, 256: 16, 257: 16, 258: 8, 262: 1, 277: 1, 278: 16, 330: 8}), "a raw photo"),
    ],
)
def test_what_is_not_a_usable_image_is_named_by_its_kind(content, found):
    with pytest.raises(InvalidImage) as refusal:
        decode_image(content)
    assert refusal.value.found.startswith(found)
    assert refusal.value.expected


@pytest.mark.parametrize("error", [EOFError(), AssertionError(), ValueError("of a kind")])
def test_the_reason_why_an_image_is_damaged_is_never_empty(error):
    class Broken(Image.Image):
        def load(self):
            raise error

    with pytest.raises(InvalidImage) as refusal:
        decode_opened(Broken())
    assert "()" not in refusal.value.found


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded_and_without_a_warning(recwarn):
    for side, found in ((12_000, "12,000 pixels wide"), (16_000, "more than 178,956,970 pixels")):
        content = encode(Image.new("1", (side, side)), "PNG")
        with pytest.raises(InvalidImage, match=found):
            decode_image(content[: len(content) // 2])
    assert not recwarn.list


@given(
    data=st.data(), kind=st.sampled_from(["PNG", "TIFF deflate", "GIF", "WEBP", "JPEG", "BMP", "PPM", "AVIF", "TGA"])
)
@settings(max_examples=150, deadline=None)
def test_a_broken_file_is_read_or_refused_and_nothing_else(data, kind):
    content = bytearray(encode(drawing(), kind))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    with suppress(InvalidImage):
        pixels = decode_image(bytes(content)).pixels
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_an_image_that_pillow_has_opened_is_read_like_its_file():
    content = encode(turned(SIZE, 6), "JPEG", 6)
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(decode_opened(opened).pixels, decode_image(content).pixels)


def test_threads_that_decode_leave_the_warnings_as_they_were():
    before = list(warnings.filters)
    both_in = threading.Barrier(2)

    def first():
        with quiet_pillow():
            both_in.wait()

    def second():
        with quiet_pillow():
            both_in.wait()
            one.join()  # the first to enter leaves first

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    two.start()
    two.join()
    assert warnings.filters == before


def test_a_heic_photo_is_read_with_the_plugin():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    buffer = io.BytesIO()
    drawing().save(buffer, "HEIF", quality=95)
    assert difference(decode_image(buffer.getvalue()).pixels, drawing()) <= 60
