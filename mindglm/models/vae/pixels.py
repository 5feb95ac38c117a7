"""Pictures <-> what the VAE reads and writes (NumPy and Pillow). Source: VaeImageProcessor of diffusers 0.42."""

import numpy as np
from PIL import Image


def preprocess(image: Image.Image, height: int, width: int) -> np.ndarray:
    """A picture resized (Lanczos) to height x width -> float32 (3, height, width) in [-1, 1]."""
    picture = image.convert("RGB").resize((width, height), resample=Image.Resampling.LANCZOS)
    x_HWC = np.asarray(picture).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((np.float32(2) * x_HWC - np.float32(1)).transpose(2, 0, 1))


def pixels_of(images_NCHW: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] (clamped) -> uint8 (N, H, W, 3)."""
    unit = np.clip(images_NCHW.astype(np.float32) / 2 + 0.5, 0, 1)
    return np.round(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1)
