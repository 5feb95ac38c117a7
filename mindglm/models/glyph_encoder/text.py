"""From a prompt to glyph features: quoted strings, byte ids, encoding, and the public pipeline's two quirks.

Quirk 1 (parity): when a prompt has an even number of strings, one pad byte stands in front of each of its strings and
is attended. Quirk 2: in a batch, shorter feature sequences are padded with zero vectors on the left, without a mask.
Source: GlmImagePipeline of diffusers 0.42 and ByT5Tokenizer of transformers 5.23 (reference section 3.1, step 6).
"""

import re

import numpy as np
from mindspore import Tensor

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTE_OFFSET = 3
EXTRA_IDS_START, EXTRA_IDS = 259, 125
MAX_BYTES = 2048
ENCODE_BATCH = 64

_QUOTES = (r"'([^']*)'", "\u201c([^\u201c\u201d]*)\u201d", r'"([^"]*)"', "\u300c([^\u300c\u300d]*)\u300d")
"""Straight single, curved double, straight double quotes, corner brackets: the order in which strings are collected."""

_SPECIAL = re.compile(r"\s*(<pad>|</s>|<unk>)\s*|(<extra_id_(?:\d|[1-9]\d|1[01]\d|12[0-4])>)")
"""What ByT5Tokenizer reads as one id; the first three swallow the white space around them."""

_SPECIAL_IDS = {"<pad>": PAD_ID, "</s>": EOS_ID, "<unk>": UNK_ID}


def glyph_strings(prompt: str) -> list[str]:
    """The quoted strings of a prompt, by kind of quote and then by position; empty ones count."""
    return [text for pattern in _QUOTES for text in re.findall(pattern, prompt)]


def byte_ids(text: str, max_length: int = MAX_BYTES) -> list[int]:
    """UTF-8 bytes + 3, cut so that with the end id at most `max_length` remain."""
    ids: list[int] = []
    start = 0
    for match in _SPECIAL.finditer(text):
        ids.extend(_plain(text[start : match.start()]))
        name, extra = match.groups()
        ids.append(_SPECIAL_IDS[name] if name else EXTRA_IDS_START + int(extra[len("<extra_id_") : -1]))
        start = match.end()
    ids.extend(_plain(text[start:]))
    if ids and ids[-1] == EOS_ID and len(ids) <= max_length:
        return ids  # the tokenizer adds no second end id
    return ids[: max_length - 1] + [EOS_ID]


def _plain(text: str) -> list[int]:
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8")]


def prompt_ids(prompt: str, max_length: int = MAX_BYTES) -> list[list[int]]:
    """Byte ids of each string of a prompt, with quirk 1; a prompt without strings has one empty string."""
    strings = glyph_strings(prompt) or [""]
    front = [PAD_ID] * ((len(strings) + 1) % 2)
    return [front + byte_ids(text, max_length) for text in strings]


def embed_prompts(encoder, prompts: list[str], max_length: int = MAX_BYTES) -> list[np.ndarray]:
    """Glyph features of each prompt: its strings' features in order, joined; float32 (T, D), T differs by prompt.

    Strings are encoded once each however often they occur, in batches of equal length, so no padding is computed.
    """
    sequences = [[tuple(ids) for ids in prompt_ids(prompt, max_length)] for prompt in prompts]
    waiting = sorted({ids for strings in sequences for ids in strings}, key=lambda ids: (len(ids), ids))
    features: dict[tuple[int, ...], np.ndarray] = {}
    while waiting:
        batch = [ids for ids in waiting[:ENCODE_BATCH] if len(ids) == len(waiting[0])]
        waiting = waiting[len(batch) :]
        ids_BT = np.asarray(batch, np.int32)
        encoded_BTD = encoder(Tensor(ids_BT), Tensor(np.ones_like(ids_BT, bool))).asnumpy()
        features.update((ids, rows.copy()) for ids, rows in zip(batch, encoded_BTD))
    return [np.concatenate([features[ids] for ids in strings]) for strings in sequences]


def pad_left_batch(features: list[np.ndarray]) -> np.ndarray:
    """Quirk 2: features (T_i, D) -> (B, max T, D), zeros on the left. The public pipeline attends to the zeros."""
    longest = max(len(rows) for rows in features)
    return np.stack([np.pad(rows, ((longest - len(rows), 0), (0, 0))) for rows in features])
