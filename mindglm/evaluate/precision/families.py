"""The families of the card, in the order in which a picture is made; the first departure is the first in this order."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mindglm.evaluate.precision import ar_families, picture_families, reference_families, run_families


@dataclass(frozen=True)
class Family:
    """One fixture file and the function that computes what is in it."""

    name: str
    check: Callable
    """(subject, fixture) -> iterator of Found, in the order of the computation."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Start of the names that are not compared -> why."""


PROMPTS = "the prompt, which is given as ids too"
BF16_RUN = "the public class's own bfloat16 run: compared with --dtype bf16"

GRADIENT_RUN = "no gradients in bfloat16 on a CPU, which has no kernels for them"

FAMILIES = [
    Family("processor", ar_families.processor, {"chat_template": "mindglm writes the prompt itself"}),
    Family("vision_vq", ar_families.vision_vq),
    Family("ar_t2i", ar_families.ar_t2i, {"text": PROMPTS, "bf16.": BF16_RUN}),
    Family("ar_batch", ar_families.ar_batch),
    Family("ar_i2i", reference_families.ar_i2i, {"multi.texts": PROMPTS, "batch.texts": PROMPTS}),
    Family("sampling", ar_families.sampling),
    Family("glyph", picture_families.glyph),
    Family("scheduler", picture_families.scheduler),
    Family("dit_t2i", picture_families.dit_t2i, {
        "bf16.": BF16_RUN,
        "quirk.": "the public class's text mask is a known mistake of its: a mask of 0 and 1 that it adds to the "
                  "scores; mindglm's mask hides"}),
    Family("dit_i2i", reference_families.dit_i2i, {"ref2.": "no run of the fixture reads it"}),
    Family("vae", picture_families.vae),
    Family("pipeline", run_families.pipeline),
    Family("train_ar", run_families.train_ar, {"grad.": GRADIENT_RUN}),
    Family("train_dit", run_families.train_dit, {"t2i.grad.": GRADIENT_RUN, "i2i.grad.": GRADIENT_RUN}),
]
