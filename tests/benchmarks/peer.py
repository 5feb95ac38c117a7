"""The other side: the public torch classes, in eager mode, in their own Python.

    python -m tests.benchmarks.peer FOLDER --size small --threads 2

Builds the model folder that both sides load (random weights, released layout), then serves: for every line on standard
input that names a task, one line of JSON: {"wall": ..., "cpu": ..., "value": ...}, seconds. `value` is a number that
both sides must get (a loss, a mean), so that the same work is compared. Needs torch, transformers and diffusers, not
MindSpore.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import GlmImagePipeline

from tests.benchmarks import sizes
from tests.golden import make_golden


class Peer:
    def __init__(self, folder: pathlib.Path, size: str):
        self.size = size
        if not (folder / "model_index.json").exists():
            config = make_golden.merge(make_golden.BASE, sizes.STRUCTURES[size])
            pipe = make_golden.build(config, 0)
            pipe.vision_language_encoder.generation_config.top_k = 50
            make_golden.write_repo(pipe, config, str(folder), "200MB")
        self.pipe = GlmImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.inputs = {}
        self.optimizers = {}

    def load(self, path: str) -> None:
        """Inputs of the training and decoding tasks, made by the other side."""
        self.inputs = {name: torch.from_numpy(array) for name, array in np.load(path).items()}

    def ar_train_step(self) -> float:
        x, model = self.inputs, self.pipe.vision_language_encoder

        def loss():
            logits = model(input_ids=x["ar.ids"].long(), position_ids=x["ar.positions"].long(),
                           attention_mask=torch.ones_like(x["ar.ids"]), use_cache=False).logits.float()
            nll = F.cross_entropy(logits.flatten(0, 1), x["ar.labels"].flatten().long(), reduction="none")
            return (nll * x["ar.weights"].flatten()).sum() / x["ar.weights"].sum()

        trained = [p for name, p in model.named_parameters() if not name.startswith(("model.visual", "model.vqmodel"))]
        return self._step("ar", trained, loss)

    def dit_train_step(self) -> float:
        x, model = self.inputs, self.pipe.transformer

        def loss():
            velocity = model(hidden_states=x["dit.noisy"], encoder_hidden_states=x["dit.glyph"],
                             prior_token_id=x["dit.prior_ids"].long(), prior_token_drop=x["dit.prior_drop"],
                             timestep=x["dit.time"], target_size=x["dit.target_size"], crop_coords=x["dit.crop"]).sample
            return F.mse_loss(velocity, x["dit.target"])

        return self._step("dit", list(model.parameters()), loss)

    def _step(self, name: str, parameters, loss_function) -> float:
        if name not in self.optimizers:
            for p in parameters:
                p.requires_grad_(True)
            self.optimizers[name] = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.01)
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss = loss_function()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss)

    @torch.no_grad()
    def ar_decode(self) -> float:
        make_golden.reset_rope_cache(self.pipe.vision_language_encoder)
        codes, *_ = self.pipe.generate_prior_tokens(sizes.PROMPT, sizes.HEIGHT, sizes.WIDTH,
                                                    device=torch.device("cpu"))
        return float(codes.numel())

    @torch.no_grad()
    def vae_decode(self) -> float:
        vae, z = self.pipe.vae, self.inputs["vae.latents"]
        mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        return float(vae.decode(z * std + mean).sample.abs().mean())

    @torch.no_grad()
    def pipeline(self) -> float:
        make_golden.reset_rope_cache(self.pipe.vision_language_encoder)
        image = self.pipe(prompt=sizes.PROMPT, height=sizes.HEIGHT, width=sizes.WIDTH, num_inference_steps=sizes.STEPS,
                          guidance_scale=sizes.GUIDANCE, output_type="np").images
        return float(np.prod(image.shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--size", required=True, choices=list(sizes.STRUCTURES))
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    torch.set_num_threads(arguments.threads)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    peer = Peer(arguments.folder, arguments.size)
    print(json.dumps({"ready": torch.__version__}), file=answers)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "load":
            peer.load(argument)
            print(json.dumps({"loaded": argument}), file=answers)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        value = getattr(peer, command)()
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "value": value}),
              file=answers)


if __name__ == "__main__":
    main()
