"""Three-axis rotary positions of the AR generator (reference section 2.2), in NumPy.

Axes are (temporal, row, column). Text counts up on all three alike; the codes of an image stand still in time and
spread over rows and columns; the next item starts after the longer side. Source: `GlmImageModel.get_rope_index`.
"""

import numpy as np

Grid = tuple[int, int]
"""(rows, columns) of codes."""


def text_positions(start: int, length: int) -> np.ndarray:
    """(3, length) int32: start, start + 1, ... on every axis."""
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int32), (3, length))


def grid_positions(start: int, rows: int, columns: int) -> np.ndarray:
    """(3, rows * columns) int32 in raster order: time `start`, row start + r, column start + c."""
    r, c = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    return np.stack([np.full_like(r, start), start + r, start + c])


def sequence_positions(ids: np.ndarray, source_grids: list[Grid], start_id: int, end_id: int) -> tuple[np.ndarray, int]:
    """Positions of one unpadded prompt, and where the next token would stand.

    Args:
        ids: (S,) prompt ids; each source image is start_id, rows * columns codes, end_id.
        source_grids: grids of the source images, in order; empty for text to image.
    Returns:
        (3, S) int32 and the position after the last token.
    """
    starts = np.flatnonzero(ids == start_id) + 1
    ends = np.flatnonzero(ids == end_id)
    assert len(ends) == len(source_grids) <= len(starts), "as many closed images as source grids"
    position, last_end, parts = 0, 0, []
    for start, end, (rows, columns) in zip(starts, ends, source_grids):
        assert end - start == rows * columns, f"{end - start} codes for a grid of {rows} x {columns}"
        parts.append(text_positions(position, start - last_end))
        position += int(start - last_end)
        parts.append(grid_positions(position, rows, columns))
        position += max(rows, columns)
        last_end = end
    parts.append(text_positions(position, len(ids) - last_end))
    return np.concatenate(parts, 1), position + int(len(ids) - last_end)


def prefill_positions(ids_BS: np.ndarray, valid_BS: np.ndarray | None = None,
                      source_grids: list[list[Grid]] | None = None, start_id: int = -1,
                      end_id: int = -1) -> tuple[np.ndarray, list[int]]:
    """Positions of a (left-)padded batch of prompts.

    Args:
        valid_BS: bool, False at padding, whose positions are 1; None when nothing is padded.
        source_grids: per sample, the grids of its source images; None for text to image. Then the ids of image start
            and end are needed to find them.
    Returns:
        (3, B, S) int32, and per sample the position after its last token, where decoding starts.
    """
    batch, length = ids_BS.shape
    out = np.ones((3, batch, length), np.int32)
    after = []
    for b in range(batch):
        valid = np.ones(length, bool) if valid_BS is None else valid_BS[b].astype(bool)
        if source_grids is None:
            positions, end = text_positions(0, int(valid.sum())), int(valid.sum())
        else:
            positions, end = sequence_positions(ids_BS[b][valid], source_grids[b], start_id, end_id)
        out[:, b, valid] = positions
        after.append(end)
    return out, after


def target_positions(start: int, grids: list[Grid]) -> np.ndarray:
    """Positions of the generated tokens of one sample: (3, sum(rows * columns) + 1) int32.

    grids are listed as the prompt lists them, [large, preview] or [large]; generation goes through them in reverse.
    Column n belongs to the n-th generated token when it is fed back; the last one to the end token.
    """
    parts = []
    for rows, columns in reversed(grids):
        parts.append(grid_positions(start, rows, columns))
        start += max(rows, columns)
    return np.concatenate([*parts, text_positions(start, 1)], 1)


def decode_positions(starts: list[int], grids: list[list[Grid]]) -> np.ndarray:
    """`target_positions` of a batch: (3, B, L) int32; shorter samples repeat their last column."""
    tables = [target_positions(start, sample) for start, sample in zip(starts, grids, strict=True)]
    longest = max(table.shape[1] for table in tables)
    return np.stack([np.pad(table, ((0, 0), (0, longest - table.shape[1])), mode="edge") for table in tables], 1)


def training_positions(prompt_len: int, grids: list[Grid]) -> np.ndarray:
    """Positions of a text-to-image training sequence, prompt + codes of all grids: (3, S) int32.

    grids as in `target_positions`. The end token is predicted, never fed, so it has no column.
    """
    return np.concatenate([text_positions(0, prompt_len), target_positions(prompt_len, grids)[:, :-1]], 1)
