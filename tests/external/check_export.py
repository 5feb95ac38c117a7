"""Does an exported model open in the public GlmImagePipeline, and draw our picture there?

    python -m tests.external.check_export --model output/quickstart/dit/model --torch-python /tmp/external/bin/python

Two environments: this process has MindSpore and makes the pictures; --torch-python has the packages of
requirements.txt and draws them again (public_pipeline.py) from the same prompt, noise and image codes. README.md beside
this file says how to make it. Exit code: 0 every picture within --tolerance; 1 not; 2 bad input.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from mindglm.errors import UserError, exit_code

PROMPTS = ('a red sign that says "OPEN"', "a cat", "two signs 'IN' and 'OUT'")
FOLLOWER = pathlib.Path(__file__).with_name("public_pipeline.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder in the released layout")
    parser.add_argument("--torch-python", required=True, help="Python with torch, transformers and diffusers")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--size", type=int, help="pixels a side; left out: the VAE's sample_size")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of pixels in [0, 1] and of AR logits, relative")
    args = parser.parse_args()
    outcome = [0]
    return exit_code(lambda: outcome.append(check(args))) or outcome[-1]


def check(args) -> int:
    """Prints a table; 0 when all is within the tolerance, else 1."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = pathlib.Path(folder, "ours.npz"), pathlib.Path(folder, "theirs.npz")
        prompts = args.prompt or list(PROMPTS)
        made = draw(args.model, prompts, args.size, args.steps, args.guidance_scale)
        np.savez(ours, **made)
        order = {"model": str(args.model.resolve()), "prompts": prompts, "steps": args.steps,
                 "guidance_scale": args.guidance_scale, "ours": str(ours), "theirs": str(theirs)}
        result = subprocess.run([args.torch_python, str(FOLLOWER)], input=json.dumps(order), text=True)
        if result.returncode:
            raise UserError(f"{args.torch_python} {FOLLOWER.name} ended with code {result.returncode}; its message is "
                            "above. Expected the packages of tests/external/requirements.txt there")
        return compare(prompts, made, np.load(theirs), args.tolerance)


def draw(model, prompts, size: int | None, steps: int, scale: float) -> dict[str, np.ndarray]:
    """Codes, noise, latents, pixels and AR logits of every prompt, one at a time, as the public pipeline goes."""
    from mindspore import Tensor

    from mindglm.generate.pipeline import Pipeline
    from mindglm.order import rng

    pipeline = Pipeline.from_pretrained(model, hf_compatible=True)
    size = size or pipeline.vae.config.sample_size
    # Image codes only: the public sampling draws from all ids and stops where the id is none.
    sampler = Pipeline.from_pretrained(model)
    codes = sampler.sample_codes(prompts, size, size, [rng(0, 0, i, "external/codes") for i in range(len(prompts))])
    out = {"size": np.array(size)}
    for i, prompt in enumerate(prompts):
        noise = pipeline.noise(size, size, rng(0, 0, i, "external/noise"))[None]
        glyphs = pipeline.glyph_features([prompt])
        latents = pipeline.sample_latents(noise, codes[i:i + 1], glyphs, size, size, steps, scale)
        picture = pipeline.vae.decode(Tensor(latents)).asnumpy() / 2 + 0.5
        ids = pipeline.processor.prompt_ids(prompt, size, size)
        ramp = np.broadcast_to(np.arange(len(ids), dtype=np.int32), (3, 1, len(ids)))
        logits = pipeline.ar.prefill(Tensor(np.array([ids], np.int32)), Tensor(np.array(ramp)))[0].asnumpy()
        out.update({f"{i}.codes": codes[i], f"{i}.noise": noise, f"{i}.latents": latents, f"{i}.ids": np.array(ids),
                    f"{i}.picture": np.clip(picture, 0, 1).transpose(0, 2, 3, 1), f"{i}.logits": logits})
    return out


def compare(prompts, ours, theirs, tolerance: float) -> int:
    """Prints the largest differences; 1 when one is above the tolerance."""
    over = 0
    print(f"{'prompt':<32} {'picture':>10} {'latents':>10} {'AR logits':>10}  prompt ids")
    for i, prompt in enumerate(prompts):
        errors = [float(np.abs(ours[f"{i}.{name}"] - theirs[f"{i}.{name}"]).max() / scale) for name, scale in (
            ("picture", 1), ("latents", np.abs(theirs[f"{i}.latents"]).max()),
            ("logits", np.abs(theirs[f"{i}.logits"]).max()))]
        same = np.array_equal(ours[f"{i}.ids"], theirs[f"{i}.ids"])
        over = over | (not same) | (not max(errors) <= tolerance)
        print(f"{prompt[:32]:<32} " + " ".join(f"{e:>10.2e}" for e in errors) + ("  equal" if same else "  DIFFER"))
    if theirs["strays"].size:
        over = 1
        print(f"weights that only one side knows: {', '.join(theirs['strays'][:10])}")
    print(f"{'within' if not over else 'NOT within'} {tolerance:g}")
    print(f"the public pipeline's own run, from the prompt alone: {theirs['whole_run']}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
