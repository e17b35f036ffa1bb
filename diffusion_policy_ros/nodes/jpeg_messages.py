"""Raw images to JPEG on their way into a bag."""

from __future__ import annotations

import array
from collections.abc import Callable

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.control.readings import image_pixels
from diffusion_policy_ros.data.pictures import encode_picture

IMAGE, COMPRESSED_IMAGE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'


def jpeg_converter(quality: int) -> Callable[[bytes], bytes]:
    """Return what turns an Image in CDR into a CompressedImage in CDR of the same header."""
    def convert(data: bytes) -> bytes:
        message = deserialize_message(data, Image)
        pixels, encoding = image_pixels(message)
        rgb = camera_image(pixels, encoding, *pixels.shape[:2])
        jpeg = encode_picture(rgb, 'jpeg', quality)
        # image_transport swaps red and blue where "bgr8" doesn't say how JPEGs are encoded.
        shown = 'rgb8' if encoding == 'mono8' else encoding
        compressed = CompressedImage(header=message.header,
                                     format=f'{shown}; jpeg compressed bgr8')
        compressed.data = array.array('B', jpeg.tobytes())
        return serialize_message(compressed)
    return convert
