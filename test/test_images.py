"""What a policy sees of a camera's pixels."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from diffusion_policy_ros.control.images import camera_image, decode_image

RED_GREEN = np.array([[[255, 0, 0], [0, 255, 7]]], np.uint8)  # (1, 2, 3) RGB


def with_alpha(pixels):
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 99, np.uint8)], axis=2)


@pytest.mark.parametrize('encoding, pixels', [
    ('rgb8', RED_GREEN),
    ('bgr8', RED_GREEN[:, :, ::-1]),
    ('rgba8', with_alpha(RED_GREEN)),
    ('bgra8', with_alpha(RED_GREEN[:, :, ::-1])),
])
def test_each_colour_encoding_gives_the_same_rgb(encoding, pixels):
    image = camera_image(pixels, encoding, 1, 2)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RED_GREEN)


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1)])
def test_mono_fills_all_three_channels(shape):
    pixels = np.arange(6, dtype=np.uint8).reshape(shape)
    image = camera_image(pixels, 'mono8', 2, 3)
    assert image.shape == (2, 3, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], pixels.reshape(2, 3))


def test_pixels_of_the_right_size_are_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    assert camera_image(pixels, 'rgb8', 24, 32) is pixels


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'mono8'])
def test_shrinking_averages_over_areas(encoding):
    shape = (8, 12) if encoding == 'mono8' else (8, 12, 3)
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    rgb = camera_image(pixels, encoding, 8, 12).astype(float)
    areas = rgb.reshape(2, 4, 3, 4, 3).mean(axis=(1, 3))
    assert np.abs(camera_image(pixels, encoding, 2, 3) - areas).max() <= 0.5


def test_enlarging_keeps_a_plain_colour_plain():
    pixels = np.full((3, 5, 3), 77, np.uint8)
    assert np.unique(camera_image(pixels, 'rgb8', 9, 7)).tolist() == [77]


def test_a_view_with_strides_is_read_right():
    pixels = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    upright = pixels[::-1, ::-1]
    np.testing.assert_array_equal(camera_image(upright, 'rgb8', 4, 4),
                                  camera_image(upright.copy(), 'rgb8', 4, 4))


@pytest.mark.parametrize('pixels, encoding, message', [
    (RED_GREEN, '16UC1', "encoding is '16UC1', expected one of rgb8"),
    (RED_GREEN, 'rgba8', r'expected uint8 \(height, width, 4\) for rgba8'),
    (RED_GREEN.astype(np.float32), 'rgb8', 'pixels are float32'),
    (np.zeros((0, 4, 3), np.uint8), 'rgb8', 'expected uint8'),
    (RED_GREEN[:, :, 0], 'rgb8', 'expected uint8'),
])
def test_what_does_not_fit_is_refused(pixels, encoding, message):
    with pytest.raises(ValueError, match=message):
        camera_image(pixels, encoding, 1, 2)


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match='size asked for is 0x2'):
        camera_image(RED_GREEN, 'rgb8', 0, 2)


@pytest.mark.parametrize('kind', ['png', 'jpeg'])
def test_a_header_of_an_absurd_size_is_no_image(kind):
    """Such a header makes OpenCV raise an error of its own, which no callback expects."""
    data = bytearray(cv2.imencode(f'.{kind}', np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    if kind == 'png':
        data[16:24] = struct.pack('>II', 999_999, 2_000)
        data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    else:
        at = data.index(b'\xff\xc0')
        data[at + 5:at + 9] = struct.pack('>HH', 65_000, 65_000)
    with pytest.raises(ValueError, match='bytes that are no image, expected jpeg or png'):
        decode_image(bytes(data))
