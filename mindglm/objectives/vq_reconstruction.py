"""Trains the image tokenizer: tower, cosine VQ and, for training only, a linear head back to pixels.

Every image is seen twice, as the AR generator's data will see it: at the size of the large code grid (half the
pixels) and at the size of the preview grid. Each code must rebuild its own 16 x 16 pixels. Gradients pass the choice
of a code "straight through": forward the code's unit vector, backward as if it were the encoder's.

    loss of a view = mean (pixels_hat - pixels)^2 + codebook_weight |e - sg(z)|^2 + commitment_beta |z - sg(e)|^2

with z the encoder's and e the nearest code's unit vector, squared distances summed over the codebook width and
averaged over codes. (The public class puts the beta on the codebook term; its own training was never released.)

Shape letters: B images, h w patches a side, N = h * w, P values of a patch, E codebook width, K codes.
"""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor, mint, nn
from mindspore import ops as ms_ops

from mindglm import ops
from mindglm.errors import UserError
from mindglm.models.ar_generator.model import Linear
from mindglm.models.ar_generator.processor import target_grids, tokenizer_view
from mindglm.models.ar_generator.vision import VisionTokenizer, patchify
from mindglm.recipe.models import ArGeneratorConfig

LLOYD_ROUNDS = 8
"""Rounds of k-means that spread the first codebook over the encoder's outputs."""


class TrainingOnly(nn.Cell):
    """Parameters that are trained and never exported."""

    def __init__(self, config: ArGeneratorConfig):
        super().__init__()
        self.pixel_head = Linear(config.vq_config.latent_channels, config.vision_config.patch_dim)


class Network(nn.Cell):
    """(large patches (B, h, w, P), preview patches (B, ph, pw, P)) -> (sum over images of their loss, B)."""

    def __init__(self, tokenizer: VisionTokenizer, training_only: TrainingOnly, options):
        super().__init__(auto_prefix=False)  # keeps the released parameter names
        self.tokenizer = tokenizer
        self.training_only = training_only
        self.beta, self.codebook_weight = options.commitment_beta, options.codebook_weight

    def construct(self, large_BhwP, preview_BhwP):
        loss_B = 0.5 * (self.view_loss(large_BhwP) + self.view_loss(preview_BhwP))
        return loss_B.sum(), ms_ops.ones_like(loss_B).sum()

    def view_loss(self, patches_BhwP):
        """(B,) float32"""
        b, h, w, p = patches_BhwP.shape
        rebuilt, distance_to_e, distance_to_z = self.rebuild(patches_BhwP)
        error = (rebuilt - patches_BhwP.reshape(b, h * w, p)) ** 2
        codes = self.codebook_weight * distance_to_z + self.beta * distance_to_e
        return mint.mean(error.float(), (1, 2)) + mint.mean(codes.float(), 1)

    def rebuild(self, patches_BhwP):
        """Rebuilt patches (B, N, P); |z - sg(e)|^2 and |e - sg(z)|^2, each (B, N)."""
        vq = self.tokenizer.model.vqmodel
        z = self.tokenizer.unit_vectors(patches_BhwP)
        codes = vq.codes(ms_ops.stop_gradient(z))
        e = ops.embedding(vq.quantize.unit_codebook(), codes)
        straight = z + ms_ops.stop_gradient(e - z)
        rebuilt = self.training_only.pixel_head(vq.post_quant_conv(straight))
        to_e = ((z - ms_ops.stop_gradient(e)) ** 2).sum(-1)
        to_z = ((e - ms_ops.stop_gradient(z)) ** 2).sum(-1)
        return rebuilt, to_e, to_z


class VqReconstruction:
    """Trains tower and VQ; samples give pixels (H, W, 3) uint8, all of one size in a batch."""

    def __init__(self, model_config: ArGeneratorConfig, options, seed: int):
        self.config, self.options, self.seed = model_config, options, seed
        self.model = VisionTokenizer(model_config)
        self.training_only = TrainingOnly(model_config)
        ops.init_parameters(self.model, seed)
        ops.init_parameters(self.training_only, seed)
        self.network = Network(self.model, self.training_only, options)

    def collate(self, samples: list[dict], draw: Callable[[int, str], np.random.Generator],
                training: bool) -> tuple[np.ndarray, ...]:
        """Patches of both views, float32 in [-1, 1]: (B, h32, w32, P) and (B, ph, pw, P). Draws nothing."""
        sizes = {sample["pixels"].shape[:2] for sample in samples}
        if len(sizes) > 1:
            raise UserError(f"images of several sizes in one batch: {sorted(sizes)}; prepare them at one size")
        patch = self.config.vision_config.patch_size
        views = []
        for rows, columns in target_grids(*sizes.pop()):
            images = [tokenizer_view(sample["pixels"], rows, columns, patch) for sample in samples]
            views.append(patchify(np.stack(images), patch))
        return tuple(views)

    def after_step(self, step: int, batches: Sequence[tuple],
                   gather: Callable[[np.ndarray], np.ndarray] | None = None) -> dict:
        """Keep the codebook in use. Called by the trainer after each optimizer step.

        After the first step the whole codebook is set to cluster centres of the batch's encoder outputs; then, every
        `reseed_interval` steps up to `reseed_until`, codes that this batch does not use are set to its worst
        represented outputs. A pure function of (weights, step, batch), so a resumed run goes on exactly.

        Args:
            step: optimizer steps done, 1 after the first.
            batches: this rank's micro-batches, all of the step's, as the network was given them (NumPy or Tensor).
            gather: joins arrays of all ranks along axis 0, so that all ranks set the same codes; None for one rank.
        Returns:
            {} when there was nothing to do, else how many codes the batch used and how many were set.
        """
        interval, until = self.options.reseed_interval, self.options.reseed_until
        due = interval > 0 and step % interval == 0 and (until <= 0 or step <= until)
        if step != 1 and not due:
            return {}
        z = self.encoder_outputs(batches, gather)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        table = self.model.model.vqmodel.quantize.embedding.weight
        values = table.asnumpy().copy()
        used, distance = usage(z, values)
        if step == 1:
            values, reset = cluster_centres(z, len(values), rng), len(values)
        else:
            dead = np.flatnonzero(~used)
            reset = len(dead)
            values[dead] = pick(z, reset, distance, rng)
        table.copy_(Tensor(values))  # not set_data: a compiled step would go on with the old storage
        return {"codes_used": int(used.sum()), "codes_reseeded": reset}

    def encoder_outputs(self, batches: Sequence[tuple], gather=None) -> np.ndarray:
        """Unit vectors (codes of all samples in the one view, then in the other, E) float32: the same however the
        samples are cut into micro-batches and ranks."""
        views = [np.concatenate([self.model.unit_vectors(Tensor(view)).asnumpy() for view in of_view])
                 for of_view in zip(*batches)]
        views = [view.reshape(-1, view.shape[-1]) for view in views]
        return np.concatenate(views if gather is None else [gather(view) for view in views])

    def component_tensors(self) -> dict[str, Tensor]:
        """Released name -> Parameter; the pixel head is not among them."""
        return {parameter.name: parameter for parameter in self.model.get_parameters()}


def usage(z_ME: np.ndarray, codebook_KE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which codes are nearest to some of the unit vectors z (K,) bool, and 1 - cosine to the nearest (M,)."""
    cosine = z_ME @ _unit(codebook_KE).T
    used = np.zeros(len(codebook_KE), bool)
    used[cosine.argmax(1)] = True
    return used, np.maximum(1 - cosine.max(1), 0)


def pick(z_ME: np.ndarray, count: int, weight_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`count` rows of z, drawn with chances proportional to `weight`; without repeats while there are enough.

    A little noise keeps repeated rows apart.
    """
    chances = weight_M.astype(np.float64) + 1e-9
    rows = rng.choice(len(z_ME), count, replace=count > len(z_ME), p=chances / chances.sum())
    noise = rng.standard_normal((count, z_ME.shape[1])) * (0.01 / np.sqrt(z_ME.shape[1]))
    return _unit(z_ME[rows] + noise).astype(np.float32)


def cluster_centres(z_ME: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` unit vectors spread over z by a few rounds of k-means on the sphere; empty clusters are drawn anew."""
    centres = pick(z_ME, count, np.ones(len(z_ME)), rng)
    for _ in range(LLOYD_ROUNDS):
        nearest = (z_ME @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, z_ME)
        empty = np.flatnonzero(np.bincount(nearest, minlength=count) == 0)
        sums[empty] = pick(z_ME, len(empty), usage(z_ME, centres)[1], rng)
        centres = _unit(sums)
    return centres


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
