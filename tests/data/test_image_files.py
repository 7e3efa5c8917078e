"""Picture files as people have them: the values, the side that is up, the channels."""

import struct

import numpy as np
import pytest
from PIL import Image

from jgen.data.image_files import Header, extensions, read_header, read_picture
from jgen.errors import UserError

DEEP = np.array([[0, 16384, 32768, 65535]], np.uint16)
WANTED = [0, 64, 128, 255]


def stored(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def grey_values(path, **options):
    header = read_header(path, **options)
    assert header.grey and read_picture(path, 1, **options).shape == (header.height, header.width, 1)
    return read_picture(path, 1, **options)[0, :, 0].tolist()


@pytest.mark.parametrize("ending", ["png", "tif", "jp2"])
def test_sixteen_bits(tmp_path, ending):
    assert grey_values(stored(tmp_path / f"x.{ending}", Image.fromarray(DEEP))) == WANTED


def test_sixteen_bits_of_pgm_and_big_endian_tiff(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 4 1 65535\n" + DEEP.astype(">u2").tobytes())
    assert grey_values(tmp_path / "x.pgm") == WANTED
    big = tmp_path / "x.tif"
    big.write_bytes(tiff(16, 1, DEEP.astype(">u2").tobytes(), b"MM"))
    assert grey_values(big) == WANTED


def tiff(bits, photometric, data, order=b"II", width=4):
    """A grey TIFF file of one row."""
    sign = "<" if order == b"II" else ">"
    entries = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 3, 1), (279, 4, len(data))]
    table = struct.pack(sign + "H", len(entries))
    for tag, kind, value in entries:
        table += struct.pack(sign + "HHI", tag, kind, 1) + struct.pack(
            sign + ("HH" if kind == 3 else "I"), *[value, 0][: 5 - kind]
        )
    head = order + struct.pack(sign + "HI", 42, 8 + len(data) + len(data) % 2)
    return head + data + b"\0" * (len(data) % 2) + table + struct.pack(sign + "I", 0)


def test_white_is_zero_and_twelve_bits(tmp_path):
    (tmp_path / "white.tif").write_bytes(tiff(16, 0, DEEP.tobytes()))
    assert grey_values(tmp_path / "white.tif") == [255, 191, 127, 0]
    (tmp_path / "twelve.tif").write_bytes(tiff(12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00])))
    assert grey_values(tmp_path / "twelve.tif") == [0, 128, 255, 0]  # 0, 2048, 4095, 0


def test_integers_of_32_bits_are_taken_for_16(tmp_path):
    assert grey_values(stored(tmp_path / "x.tif", Image.fromarray(DEEP.astype(np.int32)))) == WANTED
    for values, words in (([0, 65536], "from 0 to 65536"), ([-1, 5], "from -1 to 5")):
        path = stored(tmp_path / "y.tif", Image.fromarray(np.array([values], np.int32)))
        with pytest.raises(UserError, match=f"y.tif has integers {words}: they must be from 0 to 65535"):
            read_picture(path, 1)


def test_floats_are_from_0_to_1_or_refused(tmp_path):
    path = stored(tmp_path / "x.tif", Image.fromarray(np.array([[0, 0.25, 0.5, 1]], np.float32)))
    assert grey_values(path) == WANTED
    for values in ([0, 1.5], [-0.1, 1], [0, np.nan]):
        path = stored(tmp_path / "y.tif", Image.fromarray(np.array([values], np.float32)))
        with pytest.raises(UserError, match="y.tif has floats from .*: they must be from 0 to 1"):
            read_picture(path, 1)


def stored_as(upright, number):
    """How a camera stores a picture under an EXIF orientation, from the tag's definition: where row 0, column 0 are."""
    rows = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turned = upright.swapaxes(0, 1)
    rows |= {5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}
    return rows[number]


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_orientation(tmp_path, number, ending):
    upright = np.random.default_rng(0).integers(0, 256, (2, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    image = Image.fromarray(np.ascontiguousarray(stored_as(upright, number)))
    exif = Image.Exif()
    exif[274] = number
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(ending, {})
    path = stored(tmp_path / f"x.{ending}", image.convert("RGB") if ending == "webp" else image, exif=exif, **options)
    assert read_header(path)[:2] == (32, 48)
    np.testing.assert_allclose(read_picture(path, 1)[..., 0].astype(int), upright, atol=3)


def test_a_column_stored_as_a_row(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = stored(tmp_path / "x.png", Image.fromarray(np.array([[10, 20, 30]], np.uint8)), exif=exif)
    assert read_header(path) == Header(3, 1, True)
    assert read_picture(path, 1).tolist() == [[[10]], [[20]], [[30]]]


def test_a_damaged_orientation_is_none(tmp_path):
    path = stored(tmp_path / "x.jpg", Image.new("L", (3, 1)), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert read_picture(path, 1).shape == (1, 3, 1)


def test_transparent_pixels_are_the_background(tmp_path):
    pixels = np.array([[[0, 255, 0, 0], [255, 0, 255, 0], [255, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    path = stored(tmp_path / "x.png", Image.fromarray(pixels))
    assert read_picture(path, 3)[0].tolist() == [[255] * 3, [255] * 3, [255, 0, 0], [127] * 3]
    assert read_picture(path, 3, "black")[0].tolist() == [[0] * 3, [0] * 3, [255, 0, 0], [0] * 3]
    assert read_picture(path, 3, "#102030")[0, :2].tolist() == [[16, 32, 48]] * 2


def palette_picture(indices, palette):
    image = Image.fromarray(np.array([indices], np.uint8), "P")
    image.putpalette([value for colour in palette for value in colour])
    return image


def test_greys_are_one_channel(tmp_path):
    greys = palette_picture([0, 1, 2], [(9, 9, 9), (80, 80, 80), (200, 200, 200), (255, 0, 0)])  # red is not used
    assert grey_values(stored(tmp_path / "p.png", greys)) == [9, 80, 200]
    assert grey_values(stored(tmp_path / "p.gif", greys)) == [9, 80, 200]
    assert not read_header(stored(tmp_path / "c.png", palette_picture([0, 3], [(9, 9, 9)] * 3 + [(255, 0, 0)]))).grey
    alpha = Image.fromarray(np.array([[[7, 255], [7, 0], [0, 128]]], np.uint8), "LA")
    assert grey_values(stored(tmp_path / "la.png", alpha)) == [7, 255, 127]
    assert not read_header(tmp_path / "la.png", "red").grey
    assert grey_values(stored(tmp_path / "t.png", greys, transparency=1)) == [9, 255, 200]
    assert grey_values(stored(tmp_path / "deep.png", Image.fromarray(DEEP), transparency=16384)) == [0, 255, 128, 255]
    assert grey_values(stored(tmp_path / "1.png", Image.fromarray(np.array([[True, False]])))) == [255, 0]


def test_sixteen_bits_of_grey_and_alpha(tmp_path):
    import zlib

    rows = b"\0" + np.array([32768, 65535, 0, 0], ">u2").tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert grey_values(tmp_path / "x.png") == [128, 255]


@pytest.mark.parametrize("ending", "avif jfif jpe jp2 pbm tga webp bmp gif tiff ppm ico apng mpo".split())
def test_what_pillow_reads_is_read(ending):
    assert f".{ending}" in extensions() and not extensions() & {".pdf", ".txt", ".h5", ".mpeg", ".eps", ".json"}


def test_too_many_pixels_say_how_to_allow_them(tmp_path, monkeypatch):
    path = stored(tmp_path / "x.png", Image.new("1", (20_000, 10_000)))
    with pytest.raises(UserError, match="x.png does not open as an image: .*200000000.* set JGEN_MAX_PIXELS to"):
        read_header(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which is put back
    monkeypatch.setenv("JGEN_MAX_PIXELS", "200000000")
    assert read_header(path) == Header(10_000, 20_000, True)
    monkeypatch.setenv("JGEN_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="JGEN_MAX_PIXELS is 'many'"):
        read_header(path)


def test_cmyk_is_colour(tmp_path):
    path = stored(tmp_path / "x.tif", Image.fromarray(np.array([[[0, 255, 255, 0]]], np.uint8), "CMYK"))
    assert read_picture(path, 3).tolist() == [[[255, 0, 0]]]
