"""What the DiT is told, as arrays: prior codes at its own resolution, glyph features of one length (NumPy only).

Shapes: B pictures, h32 w32 sides of the AR grid, h16 w16 of the DiT's, T glyph tokens, D their width.
"""

import numpy as np


def upsample_codes(large_Bhw: np.ndarray) -> np.ndarray:
    """Codes (B, h32, w32) -> the DiT's (B, h16 * w16): every code twice along both sides, raster order."""
    doubled = large_Bhw.repeat(2, axis=1).repeat(2, axis=2)
    return doubled.reshape(len(doubled), -1).astype(np.int32)


def pad_glyphs(features, multiple: int = 1, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Glyph features [(T_i, D)] -> float32 (B, T, D), padded with zeros on the left, and the mask (B, T) of real rows.

    T is the longest (or `length`), raised to a multiple of `multiple` so that few shapes are compiled.
    """
    longest = max(max(len(f) for f in features), length or 0)
    longest = -(-longest // multiple) * multiple
    glyph_BTD = np.zeros((len(features), longest, features[0].shape[-1]), np.float32)
    mask_BT = np.zeros((len(features), longest), bool)
    for row, feature in enumerate(features):
        glyph_BTD[row, longest - len(feature):] = feature
        mask_BT[row, longest - len(feature):] = True
    return glyph_BTD, mask_BT
