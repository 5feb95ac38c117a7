"""The arithmetic of AdamW (Loshchilov & Hutter, 2019; torch.optim.AdamW) on host memory.

NumPy rounds every operation on every element alone, so the result does not depend on where an element lies: the same
bits in any layout of ranks. Pieces that fit the cache make it as fast as MindSpore's own CPU kernel.
"""

import numpy as np

PIECE = 2**15


def update(weights: np.ndarray, m: np.ndarray, v: np.ndarray, grads: np.ndarray, scale: float, lr: float, decay: float,
           betas: tuple[float, float], eps: float, updates: int) -> None:
    """One update in place; float32 vectors of one length.

    scale: what the gradient is multiplied with first. updates: how many this makes, from 1.
    """
    c1, c2 = 1 - betas[0]**updates, (1 - betas[1]**updates) ** 0.5
    numbers = (scale, 1 - lr * decay, lr / c1, 1 / c2, *betas, 1 - betas[0], 1 - betas[1], eps)
    scale, keep, rate, root, beta1, beta2, rest1, rest2, eps = (np.float32(number) for number in numbers)
    g, t = np.empty((2, min(PIECE, len(weights))), np.float32)
    for start in range(0, len(weights), PIECE):
        piece = slice(start, start + PIECE)
        w_, m_, v_ = weights[piece], m[piece], v[piece]
        g, t = g[:len(w_)], t[:len(w_)]
        np.multiply(grads[piece], scale, out=g)
        np.multiply(g, g, out=t)
        np.multiply(t, rest2, out=t)
        np.multiply(v_, beta2, out=v_)
        np.add(v_, t, out=v_)
        np.multiply(g, rest1, out=g)
        np.multiply(m_, beta1, out=m_)
        np.add(m_, g, out=m_)
        np.sqrt(v_, out=t)
        np.multiply(t, root, out=t)
        np.add(t, eps, out=t)
        np.divide(m_, t, out=t)
        np.multiply(t, rate, out=t)
        np.multiply(w_, keep, out=w_)
        np.subtract(w_, t, out=w_)
