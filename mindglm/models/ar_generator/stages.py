"""The AR generator cut into pipeline stages. Its units, in order: embedding, every layer, norm with head.

A stage owns only its units, under their released names: a rank never allocates the rest of the model. What travels
between stages is the hidden state alone; rotary tables are made from the positions on every stage.

Shape letters as in model.py.
"""

from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from mindglm.models.ar_generator.flops import unit_flops, unit_names  # noqa: F401  (read from here by those who cut)
from mindglm.models.ar_generator.model import Embedding, Layer, Linear, RMSNorm, Rotary, prefill_mask
from mindglm.ops import tape
from mindglm.recipe.models import ArGeneratorConfig


class Inputs(NamedTuple):
    """What ArGenerator.construct takes, as NumPy arrays."""

    input_ids_BS: np.ndarray
    position_ids_3BS: np.ndarray
    mask_BS: np.ndarray | None = None


class Named(nn.Cell):
    """A level of the released names, with members set from outside."""


class Stage(nn.Cell):
    """Units start..stop - 1. Parameters: `model.language_model.*` and `lm_head.weight` of those units."""

    def __init__(self, config: ArGeneratorConfig, start: int, stop: int, recompute=frozenset()):
        """recompute: numbers of the units whose activations are computed again in the backward pass (layers only)."""
        super().__init__()
        text = config.text_config
        units = len(unit_names(config))
        assert 0 <= start < stop <= units, (start, stop, units)
        self.first, self.last = start == 0, stop == units
        self.hidden_size = text.hidden_size
        self.numbers = range(max(start, 1) - 1, min(stop, units - 1) - 1)
        self.recomputed = frozenset(i for i in self.numbers if i + 1 in recompute)
        # From the leaves up: a Cell names the parameters of a member at the moment it gets it.
        layers, language, trunk = Named(), Named(), Named()
        for i in self.numbers:
            setattr(layers, str(i), Layer(text))
        if self.first:
            language.embed_tokens = Embedding(text.vocab_size, text.hidden_size)
        language.layers = layers
        if self.last:
            language.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
            self.lm_head = Linear(text.hidden_size, text.vision_vocab_size, bias=False)
        trunk.language_model = language
        self.model = trunk
        self.rotary = Rotary(text)

    def received(self, inputs: Inputs) -> tuple:
        """((shape, dtype), ...) of what comes from the stage before; () on the first."""
        if self.first:
            return ()
        return (((*inputs.input_ids_BS.shape, self.hidden_size), self.dtype),)

    @property
    def dtype(self):
        """Of the weights, and so of the hidden state."""
        return next(iter(self.get_parameters())).dtype

    def construct(self, carried: tuple, inputs: Inputs) -> tuple:
        """(hidden state (B, S, D),), or (logits (B, S, C),) on the last stage."""
        language = self.model.language_model
        x = language.embed_tokens(Tensor(inputs.input_ids_BS)) if self.first else carried[0]
        cos, sin = self.rotary(Tensor(inputs.position_ids_3BS))
        if cos.dtype != x.dtype:
            cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
        mask = prefill_mask(None if inputs.mask_BS is None else Tensor(inputs.mask_BS))
        for i in self.numbers:
            layer = getattr(language.layers, str(i))

            def run(x_BSD, layer=layer):
                return layer(x_BSD, cos, sin, mask)[0]

            x = tape.recomputed(run, (x,), layer.trainable_params()) if i in self.recomputed else run(x)
        return (self.lm_head(language.norm(x)),) if self.last else (x,)


