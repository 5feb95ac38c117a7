"""The recipe as typed data: every key a recipe may hold, its type, its default and what it means.

Section and key names are those that mindformers users know, wherever mindformers has the concept. Defaults stand here
and nowhere else; a field without a default must be given. Values are checked one by one by `loading`, against each
other by `rules`.
"""

import functools
import typing
from dataclasses import dataclass
from typing import Literal, Union

from mindglm.recipe.models import ArGeneratorConfig, DiTConfig, GlyphConfig, VAEConfig
from mindglm.recipe.sizes import Size, parse

TrainerType = Literal["ar_next_token", "flow_matching", "vae_reconstruction", "vq_reconstruction", "glyph_alignment"]

ModelConfig = Union[ArGeneratorConfig, DiTConfig, VAEConfig, GlyphConfig]

MODEL_TYPES: dict[str, type] = {
    "ArGenerator": ArGeneratorConfig,
    "DiTDecoder": DiTConfig,
    "VAE": VAEConfig,
    "GlyphEncoder": GlyphConfig,
}
"""`model.model_config.type` -> the dataclass its other keys fill."""


@dataclass(frozen=True)
class TrainerSection:
    """What is trained."""

    type: TrainerType
    """The objective: what is minimised."""
    model_name: str
    """A name for people: it appears in logs and on pages."""


@dataclass(frozen=True, kw_only=True)
class RunnerSection:
    """How much is trained."""

    global_batch_size: int
    """Samples of one optimizer step, over all ranks and micro-batches."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of a rank in one optimizer step."""
    stop_step: int
    """Optimizer steps of the whole run."""


@dataclass(frozen=True)
class ContextSection:
    """Where and how it runs."""

    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    """auto takes Ascend where there is one."""
    mode: Literal[0, 1] = 1
    """1: PyNative. 0: forward and backward of a micro-batch are compiled into one graph by ms.jit."""


@dataclass(frozen=True)
class ParallelSection:
    """How the run is spread over processes."""

    data_parallel: int = 1
    """Processes that each take a share of the global batch."""
    model_parallel: int = 1
    """Processes that share each weight matrix. Not yet: 1."""
    context_parallel: int = 1
    """Processes that share each sequence. Not yet: 1."""
    pipeline_stage: int = 1
    """Processes that each hold a part of the layers."""
    micro_batch_num: int = 1
    """With pipeline_stage: micro-batches that pass through the pipeline, times gradient_accumulation_steps."""
    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved", "zb_h1"] = "1f1b"
    """Who computes which micro-batch when: mindglm/plan/schedules.py. zb_h1 is planned only, not trained with."""
    pipeline_chunks: int = 1
    """Parts of the model a process holds; more than 1 with interleaved only."""
    pipeline_cuts: tuple[int, ...] = ()
    """Units (embedding, every layer, head) of each of the pipeline_stage * pipeline_chunks parts, in the order of the
    model. Empty: balanced by FLOPs."""
    optimizer_shard: bool = False
    """ZeRO-1: each data-parallel rank keeps its part only of the float32 master weights and of the optimizer state."""


@dataclass(frozen=True)
class RecomputeSection:
    """Activations that are computed again in the backward pass instead of kept: less memory, a third more time."""

    recompute: bool = False
    """Those of every layer."""
    select_recompute: tuple[int, ...] = ()
    """Those of the layers of these numbers, from 0, where recompute is false."""


@dataclass(frozen=True)
class PrecisionSection:
    """Number formats. Norms, softmax, the loss, master weights and optimizer state are float32 in any case."""

    params_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights. auto: bfloat16 on Ascend; float32 on CPU, which cannot compute in the other."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations. auto: that of the weights; the models compute in no other."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of gradients while they are summed over data-parallel ranks; bfloat16 halves what travels and rounds each sum."""


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW with decoupled weight decay."""

    type: Literal["AdamW"] = "AdamW"
    """mindformers' name of it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Share of a weight taken off in a step, times the learning rate."""
    no_decay: tuple[str, ...] = ("norm", "bias", "embed")
    """Parameters whose name holds one of these fragments, and all one-dimensional ones, get no weight decay."""


@dataclass(frozen=True, kw_only=True)
class LrScheduleSection:
    """Linear warm-up from 0, then half a cosine down to `lr_end`."""

    type: Literal["CosineWithWarmUpLR"] = "CosineWithWarmUpLR"
    """mindformers' name of it."""
    learning_rate: float
    """Peak, at the end of the warm-up."""
    lr_end: float = 0.0
    """Value at `total_steps` and after."""
    warmup_steps: int = 0
    """Steps of the warm-up."""
    total_steps: int = -1
    """Steps until lr_end is reached. -1: runner_config.stop_step."""


@dataclass(frozen=True)
class RunnerWrapperSection:
    """What stands between gradients and the optimizer."""

    use_clip_grad: bool = True
    """Whether max_grad_norm holds."""
    max_grad_norm: float = 1.0
    """The global norm above which gradients are scaled down."""
    max_skipped_steps: int = 20
    """A run stops when this many steps in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True)
class EmaSection:
    """Moving average of the weights."""

    decay: float = 0.0
    """0: no average is kept and the live weights are exported."""
    warmup_steps: int = 0
    """Steps over which the decay rises to its value."""


@dataclass(frozen=True)
class ModelSection:
    """The structure that is trained, and which part of it."""

    model_config: ModelConfig
    """`type` and the fields of that structure in `mindglm.recipe.models`."""
    frozen: tuple[str, ...] = ()
    """Parameters whose name begins with one of these are not trained."""
    fresh: tuple[str, ...] = ()
    """Parameters whose name begins with one of these may be missing in pretrained_model_dir; they start from random."""


@dataclass(frozen=True)
class ArNextTokenOptions:
    """Next-code prediction of the AR generator (reference section 5.2)."""

    preview_weight: float = 2.0
    """Weight of a preview code; a large code and the end code weigh 1."""
    progressive: bool = True
    """Preview codes are written before the large codes. false: large codes alone, and no preview grid in the prompt."""
    pad_to_multiple: int = 32
    """Sequences of a micro-batch are padded on the right to a multiple of this, so that few shapes are compiled."""
    prompt_dropout: float = 0.0
    """Share of samples trained with an empty caption."""


@dataclass(frozen=True)
class FlowMatchingOptions:
    """Velocity regression of the DiT decoder (reference section 5.3)."""

    condition_dropout: float = 0.1
    """Share of samples trained without prior codes and without glyphs: the unconditional branch of guidance."""
    glyph_dropout: float = 0.1
    """Share of samples trained without glyphs alone."""
    code_corruption: float = 0.05
    """Chance of each prior code to be replaced by a random one, so that sampled codes are tolerated."""
    timestep_density: Literal["uniform", "logit_normal"] = "uniform"
    """How training times are drawn, before the shift by resolution."""
    glyph_pad_to: int = 8
    """Glyph features of a micro-batch are padded to a multiple of this many tokens, and masked."""


@dataclass(frozen=True)
class VaeReconstructionOptions:
    """Reconstruction of random crops by the VAE: l1_weight * L1 + MSE + kl_weight * KL."""

    crop_size: int = 64
    """Side in pixels of the square crop."""
    l1_weight: float = 1.0
    """Weight of the absolute error."""
    kl_weight: float = 1e-4
    """Weight of the divergence from a standard normal, a mean over latent elements."""


@dataclass(frozen=True)
class VqReconstructionOptions:
    """Reconstruction of patches from quantised tower features."""

    commitment_beta: float = 0.25
    """Weight of the commitment term."""
    codebook_weight: float = 1.0
    """Weight of the term that pulls codes to features."""
    reseed_interval: int = 50
    """Every so many steps, codes that the batch does not use are set to features of the batch. 0: never."""
    reseed_until: int = 0
    """The last step at which codes are re-seeded. 0: no last one."""


@dataclass(frozen=True)
class GlyphAlignmentOptions:
    """Each byte's feature is prescribed: a code of its character, half of it its picture, and codes of its places."""

    max_bytes: int = 24
    """Longest word drawn, in bytes."""
    bitmap_size: int = 12
    """Side in pixels of the picture of one character."""


ObjectiveOptions = Union[
    ArNextTokenOptions, FlowMatchingOptions, VaeReconstructionOptions, VqReconstructionOptions, GlyphAlignmentOptions
]

OBJECTIVE_TYPES: dict[str, type] = {
    "ar_next_token": ArNextTokenOptions,
    "flow_matching": FlowMatchingOptions,
    "vae_reconstruction": VaeReconstructionOptions,
    "vq_reconstruction": VqReconstructionOptions,
    "glyph_alignment": GlyphAlignmentOptions,
}
"""`trainer.type` -> the dataclass that the `objective` section fills."""

TRAINED_MODEL: dict[str, str] = {
    "ar_next_token": "ArGenerator",
    "flow_matching": "DiTDecoder",
    "vae_reconstruction": "VAE",
    "vq_reconstruction": "ArGenerator",
    "glyph_alignment": "GlyphEncoder",
}
"""`trainer.type` -> the `model.model_config.type` it trains (tower and VQ belong to the AR generator's component)."""


@dataclass(frozen=True)
class DatasetSection:
    """What is read."""

    dataset_dir: str | None = None
    """A folder written by `mindglm prepare`. null for glyph_alignment, whose words are procedural."""
    buckets: tuple[str, ...] = ()
    """Sizes to train on, WIDTHxHEIGHT in pixels, of those that the dataset holds: [1024x1024, 768x1344]. Each global
    batch holds one of them. Empty: all that the dataset holds."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """`buckets` as (height, width)."""
        return tuple(parse(text) for text in self.buckets)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """What is kept of a run, below <output_dir>/checkpoint."""

    prefix: str = "mindglm"
    """How the tensor files' names begin."""
    save_checkpoint_steps: int
    """Steps between two checkpoints; one is always written at the end."""
    keep_checkpoint_max: int = 2
    """Newest checkpoints that are kept."""
    keep_best_max: int = 0
    """Besides those, checkpoints of the least validation loss; validation.eval_step_interval falls on their steps."""
    async_save: bool = False
    """A thread copies the state in host memory, which takes as much again, and writes it; only the next update of the
    weights waits, until the copy is made."""


@dataclass(frozen=True)
class ValidationSection:
    """Loss on held-out samples, with random draws of its own that never change."""

    eval_step_interval: int = 0
    """Steps between two validations. 0: never."""
    eval_samples: int = 64
    """Held-out samples taken, at most."""


@dataclass(frozen=True)
class MonitorSection:
    """What is told while it runs."""

    log_interval: int = 1
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    sample_step_interval: int = 0
    """Steps between two sample pictures. 0: none."""
    weights_hash_interval: int = 100
    """Steps between two lines of ledger.jsonl that hold a digest of the weights. 0: never."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, whole. A section whose keys all have defaults may be left out of the file."""

    seed: int = 0
    """Every random draw is a function of this number, the step and the sample."""
    run_mode: Literal["train"] = "train"
    """Other modes of mindformers are commands here: mindglm generate, mindglm evaluate."""
    output_dir: str
    """Where the run writes: checkpoints, metrics, samples and the exported model. One folder a run."""
    pretrained_model_dir: str | None = None
    """A folder in the released layout: start weights of the trained component, and the components that stay frozen."""
    resume_training: bool = True
    """Go on from the newest checkpoint of output_dir, when it has one."""
    strict_numerics: bool = False
    """On CPU: the same weights, bit for bit, in every layout with micro-batches of the same size, which is
    global_batch_size / (data_parallel * gradient_accumulation_steps * micro_batch_num). Slower: train/gradients.py."""
    trainer: TrainerSection
    runner_config: RunnerSection
    context: ContextSection
    parallel_config: ParallelSection
    precision: PrecisionSection
    recompute_config: RecomputeSection
    optimizer: OptimizerSection
    lr_schedule: LrScheduleSection
    runner_wrapper: RunnerWrapperSection
    ema: EmaSection
    model: ModelSection
    objective: ObjectiveOptions
    """Options of the objective that trainer.type names."""
    train_dataset: DatasetSection
    checkpoint: CheckpointSection
    validation: ValidationSection
    monitor_config: MonitorSection

    @property
    def model_type(self) -> str:
        """The `type` of model.model_config."""
        return model_type(self.model.model_config)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in one optimizer step."""
        return self.runner_config.gradient_accumulation_steps * self.parallel_config.micro_batch_num

    @property
    def runs_stages(self) -> bool:
        """Whether the pipeline's executor runs the model, in one stage or more: it is also what can recompute."""
        recomputes = self.recompute_config.recompute or bool(self.recompute_config.select_recompute)
        return recomputes or self.parallel_config.pipeline_stage > 1 or self.parallel_config.pipeline_chunks > 1

    @property
    def lr_total_steps(self) -> int:
        """Length of the schedule with -1 resolved."""
        total = self.lr_schedule.total_steps
        return self.runner_config.stop_step if total == -1 else total


@functools.cache
def hints(cls: type) -> dict[str, object]:
    """{field: its type} of a dataclass of the recipe."""
    return typing.get_type_hints(cls)


def model_type(config: ModelConfig) -> str:
    """The recipe's name of a model structure: the inverse of MODEL_TYPES."""
    for name, cls in MODEL_TYPES.items():
        if type(config) is cls:
            return name
    raise AssertionError(f"{type(config).__name__} is no model structure of a recipe")
