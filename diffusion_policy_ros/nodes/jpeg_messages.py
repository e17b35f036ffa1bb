"""Raw images to JPEG on their way into a bag."""

from __future__ import annotations

import array
from collections.abc import Callable

import cv2
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.control.readings import image_pixels

IMAGE, COMPRESSED_IMAGE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'


def jpeg_converter(quality: int) -> Callable[[bytes], bytes]:
    """Return what turns an Image in CDR into a CompressedImage in CDR of the same header."""
    def convert(data: bytes) -> bytes:
        message = deserialize_message(data, Image)
        pixels, encoding = image_pixels(message)
        rgb = camera_image(pixels, encoding, *pixels.shape[:2])
        _, jpeg = cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        compressed = CompressedImage(header=message.header, format=f'{encoding}; jpeg')
        compressed.data = array.array('B', jpeg.tobytes())
        return serialize_message(compressed)
    return convert
