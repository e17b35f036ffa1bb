import cv2
import numpy as np
import pytest

from diffusion_policy_ros.data.pictures import (
    decode, encode, picture_shape, shown_pictures,
)


def pictures(n=3, size=48):
    rows, columns = np.mgrid[:size, :size]
    return [np.stack([rows * 5, columns * 5, rows + columns + 40 * i], axis=-1).astype(np.uint8)
            for i in range(n)]


def test_what_comes_out_is_nearly_what_went_in_and_in_the_same_order_of_colours():
    blob, ends = encode(pictures())
    assert picture_shape(blob, ends) == (48, 48, 3)
    out = np.empty((3, 48, 48, 3), np.uint8)
    decode(blob, ends, out)
    for decoded, picture in zip(out, pictures()):
        assert np.abs(decoded.astype(int) - picture).mean() < 1.0


def test_each_part_is_a_jpeg_file_of_its_own():
    blob, ends = encode(pictures())
    for part, picture in zip(np.split(blob, ends[:-1]), pictures()):
        other = cv2.cvtColor(cv2.imdecode(part, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.abs(other.astype(int) - picture).mean() < 1.0


def test_png_loses_nothing():
    blob, ends = encode(pictures(), 'png')
    out = np.empty((3, 48, 48, 3), np.uint8)
    decode(blob, ends, out)
    np.testing.assert_array_equal(out, pictures())


def test_a_picture_that_is_shown_again_takes_no_bytes():
    first, second, third = pictures()
    blob, ends = encode([first, first, second, third, third])
    assert blob.shape == encode([first, second, third])[0].shape
    unique, shown = shown_pictures(ends)
    assert shown.tolist() == [0, 0, 1, 2, 2]
    np.testing.assert_array_equal(unique, encode([first, second, third])[1])


def test_no_pictures_are_no_bytes():
    blob, ends = encode([])
    assert blob.shape == ends.shape == (0,)


@pytest.mark.parametrize('spoil, message', [
    (lambda blob, ends: blob[ends[0]:ends[1]].fill(0), 'picture 1 is no JPEG'),
    (lambda blob, ends: ends.__setitem__(1, ends[0]), 'picture 1 is no JPEG'),
])
def test_a_broken_picture_is_named(spoil, message):
    blob, ends = encode(pictures())
    spoil(blob, ends)
    with pytest.raises(ValueError, match=message):
        decode(blob, ends, np.empty((3, 48, 48, 3), np.uint8))


def test_a_picture_of_another_size_is_named():
    blob, ends = encode([*pictures(2), *pictures(1, size=40)])
    with pytest.raises(ValueError, match=r'picture 2 has shape \(40, 40, 3\), expected \(48'):
        decode(blob, ends, np.empty((3, 48, 48, 3), np.uint8))
