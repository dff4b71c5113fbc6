"""DigitImages: canvases of real handwritten digits with prompts that describe them.

Importing this registers the builder, so that `tfds.data_source("digit_images/pairs")` finds it.
"""

from jaxreward.tasks.digit_images.builder import DigitImages, DigitImagesConfig

Builder, Config = DigitImages, DigitImagesConfig

__all__ = ["Builder", "Config", "DigitImages", "DigitImagesConfig"]
