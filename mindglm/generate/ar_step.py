"""The AR generator's pass over one new code as one compiled graph of few operations, for CPU.

A pass over a single token costs a CPU its launches, not its arithmetic. So the weights are rearranged once a run, into
a form that computes the same with half the operations:

- a norm's weight is part of the product behind it, and so is the scale of the queries;
- one product gives queries, keys and values, and beside queries and keys the swapped halves that rotation adds;
- a query ends in 1 and a key in 0 or HIDDEN, so that hiding an entry of the cache costs no addition;
- the cache is a Parameter: the row of the new token is written in place, the rest neither read nor copied.

Equal to `ArGenerator.decode` but for rounding (tests/generate/test_ar_sampler.py). Shape letters: B pictures, D hidden,
H query and G key/value heads, N = H + G, K head width, P = K + 1, R rotary dims, T cache entries, V ids of the head.
"""

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, jit, mint, nn
from mindspore import ops as ms_ops

from mindglm import ops

HIDDEN = -1e30
"""What a key that nothing may see adds to its score."""


class Weights:
    """A rearranged copy of the decoder's weights, shared by all steps of a sampler."""

    def __init__(self, model):
        self.model = model
        self._arrays = rearranged(model)
        self.parameters = {name: _shared(name, arrays) for name, arrays in self._arrays.items()}

    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        for name, arrays in rearranged(self.model).items():
            for kept, array in zip(self._arrays[name], arrays):
                np.copyto(kept, array)


class DecodeStep(nn.Cell):
    """The pass of one code a picture, for `batch` pictures and `entries` cache entries; `begin`, then `feed`."""

    def __init__(self, weights: Weights, batch: int, entries: int):
        super().__init__(auto_prefix=False)
        text = self.text = weights.model.config.text_config
        self._rotary = (weights.model.model.language_model.rotary,)  # in a tuple: no member
        self.batch, self.entries, self.layers = batch, entries, text.num_hidden_layers
        self.heads, self.groups, self.width = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        self.floor = text.rms_norm_eps * text.hidden_size
        for name, parameters in weights.parameters.items():
            setattr(self, name, parameters)
        rows = batch * self.groups * entries
        self._keys = [np.zeros((rows, self.width + 1), np.float32) for _ in range(self.layers)]
        self._values = [np.zeros((rows, self.width), np.float32) for _ in range(self.layers)]
        self.keys, self.values = _shared("keys", self._keys), _shared("values", self._values)
        self._first_rows = np.arange(batch * self.groups, dtype=np.int32) * entries
        self.product, self.each = ms_ops.MatMul(), ms_ops.BatchMatMul()
        self.each_transposed, self.softmax = ms_ops.BatchMatMul(transpose_b=True), ms_ops.Softmax(-1)
        self.write, self.sum = ms_ops.ScatterUpdate(), ms_ops.ReduceSum(True)

        def run(ids_B, cos_B1P, sin_B1P, rows_BG):
            return self.construct(ids_B, cos_B1P, sin_B1P, rows_BG)

        self._run = jit(run)

    def begin(self, cache, valid_BS: np.ndarray, position_3BL: np.ndarray) -> None:
        """Takes over the prompts' cache.

        Args:
            cache: of each layer (k, v), (B, G, S, K), as `ArGenerator.prefill` gives it.
            valid_BS: False at padding.
            position_3BL: positions of the codes that will be fed.
        """
        self._tables = [np.full((position_3BL.shape[2], self.batch, 1, self.width + 1), rest, np.float32)
                        for rest in (1, 0)]
        for table, given in zip(self._tables, self._rotary[0](Tensor(position_3BL))):
            table[..., 0, :given.shape[-1]] = given.asnumpy()[:, 0].swapaxes(0, 1)
        length, shape = valid_BS.shape[1], (self.batch, self.groups, self.entries, -1)
        self._length = length
        for keys, values, (k, v) in zip(self._keys, self._values, cache):
            keys, values = keys.reshape(shape), values.reshape(shape)
            keys[..., -1] = HIDDEN
            keys[:, :, :length, -1] = np.where(valid_BS, 0, HIDDEN)[:, None]
            keys[:, :, :length, :-1], values[:, :, :length] = k.asnumpy(), v.asnumpy()

    def feed(self, ids_B: np.ndarray, index: int) -> np.ndarray:
        """Logits (B, V) after the codes `ids_B`, the index-th ones of the run."""
        rows_BG = self._first_rows + np.int32(self._length + index)
        tables = (Tensor(table[index]) for table in self._tables)
        return self._run(Tensor(ids_B), *tables, Tensor(rows_BG)).asnumpy()

    def normed(self, x_BD):
        """x over its root mean square, times D ** -0.5, which the weights behind it make good."""
        return x_BD * mint.rsqrt(self.sum(x_BD * x_BD, (1,)) + self.floor)

    def construct(self, ids_B, cos_B1P, sin_B1P, rows_BG):
        """Logits (B, V). rows_BG: the cache rows of the new keys and values, int32."""
        b, h, g, k = self.batch, self.heads, self.groups, self.width
        plain_width = (h + g) * (k + 1)
        x = ms_ops.gather(self.embedding[0], ids_B, 0)
        for i in range(self.layers):
            joint = self.product(self.normed(x), self.attention_in[i]) + self.attention_bias[i]
            plain, swapped, v = mint.split(joint, (plain_width, plain_width, g * k), 1)
            turned = plain.reshape(b, h + g, k + 1) * cos_B1P + swapped.reshape(b, h + g, k + 1) * sin_B1P
            q_BHP, k_BGP = mint.split(turned, (h, g), 1)
            keys = self.write(self.keys[i], rows_BG, k_BGP.reshape(b * g, k + 1))
            values = self.write(self.values[i], rows_BG, v.reshape(b * g, k))
            scores = self.each_transposed(q_BHP.reshape(b * g, h // g, k + 1), keys.reshape(b * g, self.entries, k + 1))
            seen = self.each(self.softmax(scores), values.reshape(b * g, self.entries, k))
            attended = self.product(seen.reshape(b, h * k), self.attention_out[i])
            x = x + self.normed(attended) * self.attention_norm[i]
            gate, up = mint.split(self.product(self.normed(x), self.mlp_in[i]), self.text.intermediate_size, 1)
            x = x + self.normed(self.product(ops.silu(gate) * up, self.mlp_out[i])) * self.mlp_norm[i]
        return self.product(self.normed(x), self.head[0])


def _shared(name: str, arrays: list[np.ndarray]) -> ParameterTuple:
    """Parameters in the arrays' own memory: what is written into the one shows in the other, compiled graphs too."""
    parameters = [Parameter(Tensor(array), name=f"{name}.{i}") for i, array in enumerate(arrays)]
    for parameter, array in zip(parameters, arrays):
        parameter.set_data(Tensor.from_numpy(array))
        assert parameter.data_ptr() == array.ctypes.data, "MindSpore copied the array"
    return ParameterTuple(parameters)


def rearranged(model) -> dict[str, list[np.ndarray]]:
    """The decoder's weights as DecodeStep uses them: one array a layer, matrices (in, out)."""
    text, language = model.config.text_config, model.model.language_model
    layers = [_layer(layer, text) for layer in language.layers]
    arrays = {name: [layer[name] for layer in layers] for name in layers[0]}
    root = text.hidden_size**0.5
    arrays["embedding"] = [_array(language.embed_tokens.weight)]
    arrays["head"] = [_behind_norm(_array(model.lm_head.weight), language.norm, root)]
    return arrays


def _layer(layer, text) -> dict[str, np.ndarray]:
    attention, root = layer.self_attn, text.hidden_size**0.5
    scale = text.head_dim**-0.5
    q = _heads(attention.q_proj, text.num_attention_heads) * np.float32(scale)
    k = _heads(attention.k_proj, text.num_key_value_heads)
    both = np.concatenate([q, k])  # (N, K, D + 1), the bias as a last column
    swapped = _swapped_halves(both, text.rotary_dim)
    end = np.zeros((both.shape[0], 1, both.shape[2]), np.float32)
    query_end = end.copy()
    query_end[:text.num_attention_heads, 0, -1] = 1
    parts = (np.concatenate([both, query_end], 1), np.concatenate([swapped, end], 1),
             _heads(attention.v_proj, text.num_key_value_heads))
    joint = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    return {
        "attention_in": _behind_norm(joint[:, :-1], layer.input_layernorm, root),
        "attention_bias": joint[:, -1:].T.copy(),
        "attention_out": _array(attention.o_proj.weight).T.copy(),
        "attention_norm": _array(layer.post_self_attn_layernorm.weight)[None] * np.float32(root),
        "mlp_in": _behind_norm(_array(layer.mlp.gate_up_proj.weight), layer.post_attention_layernorm, root),
        "mlp_out": _array(layer.mlp.down_proj.weight).T.copy(),
        "mlp_norm": _array(layer.post_mlp_layernorm.weight)[None] * np.float32(root),
    }


def _heads(projection, heads: int) -> np.ndarray:
    """(heads, K, D + 1): the rows of each head, their bias behind them."""
    rows = np.concatenate([_array(projection.weight), _array(projection.bias)[:, None]], 1)
    return rows.reshape(heads, -1, rows.shape[1])


def _swapped_halves(rows_NKD: np.ndarray, rotary: int) -> np.ndarray:
    """[-second, first, 0] of the first `rotary` rows of each head and the rest."""
    half, swapped = rotary // 2, np.zeros_like(rows_NKD)
    swapped[:, :half], swapped[:, half:rotary] = -rows_NKD[:, half:rotary], rows_NKD[:, :half]
    return swapped


def _behind_norm(weight_OD: np.ndarray, norm, root: float) -> np.ndarray:
    """The matrix (D, O) that takes what `DecodeStep.normed` gives."""
    return np.ascontiguousarray((weight_OD * (_array(norm.weight) * np.float32(root))).T)


def _array(parameter) -> np.ndarray:
    return parameter.asnumpy()
