"""The torch side of check_export.py: reads its order from standard input, draws the same pictures with diffusers.

Runs in an environment without mindglm. transformers and diffusers are used as they are: nothing of theirs is patched.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from diffusers import GlmImagePipeline
from safetensors import safe_open


def main() -> None:
    order = json.load(sys.stdin)
    ours = np.load(order["ours"])
    size = int(ours["size"])
    pipe = GlmImagePipeline.from_pretrained(order["model"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    out = {"strays": np.array(strays(pipe, pathlib.Path(order["model"])), dtype=str)}
    for i, prompt in enumerate(order["prompts"]):
        codes = torch.from_numpy(ours[f"{i}.codes"]).long()
        prior = codes.repeat_interleave(2, 0).repeat_interleave(2, 1).reshape(1, -1)
        request = {"prompt": prompt, "height": size, "width": size, "num_inference_steps": order["steps"],
                   "guidance_scale": order["guidance_scale"], "prior_token_ids": prior}
        with torch.no_grad():
            for name, kind in (("picture", "np"), ("latents", "latent")):
                noise = torch.from_numpy(ours[f"{i}.noise"])
                found = pipe(latents=noise.clone(), output_type=kind, **request).images
                out[f"{i}.{name}"] = np.asarray(found)
            ids = prompt_ids(pipe, prompt, size)
            out[f"{i}.ids"] = np.array(ids)
            out[f"{i}.logits"] = logits(pipe.vision_language_encoder, ids)
    out["whole_run"] = np.array(whole_run(pipe, order, size))
    np.savez(order["theirs"], **out)


def strays(pipe, root: pathlib.Path) -> list[str]:
    """Weights that a public class has and the files lack, or the other way: loading would only warn of them."""
    found = []
    for component in ("vision_language_encoder", "transformer", "vae", "text_encoder"):
        stored = set()
        for path in (root / component).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                stored.update(file.keys())
        names = set(getattr(pipe, component).state_dict()) - {"encoder.embed_tokens.weight"}  # a second name, tied
        found += [f"{component}/{name}" for name in sorted(stored ^ names)]
    return found


def prompt_ids(pipe, prompt: str, size: int) -> list[int]:
    """The ids that the public processor makes of a text-to-image prompt."""
    content = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    inputs = pipe.processor.apply_chat_template(content, tokenize=True, return_dict=True, return_tensors="pt",
                                                target_h=size, target_w=size)
    return inputs["input_ids"][0].tolist()


def logits(vle, ids: list[int]) -> np.ndarray:
    """Of the code after the prompt."""
    ramp = torch.arange(len(ids)).expand(3, 1, -1)
    hidden = vle.model.language_model(input_ids=torch.tensor([ids]), position_ids=ramp).last_hidden_state
    return vle.lm_head(hidden[:, -1]).numpy()


def whole_run(pipe, order: dict, size: int) -> str:
    """What the public pipeline does from the prompt alone, its own sampling included; it draws any id it likes."""
    torch.manual_seed(0)
    try:
        picture = pipe(prompt=order["prompts"][0], height=size, width=size, num_inference_steps=2,
                       generator=torch.Generator().manual_seed(0), output_type="np").images
    except (IndexError, RuntimeError) as error:
        return f"stopped, as it does when an id that is no image code is drawn ({str(error).splitlines()[0]})"
    return f"a picture {picture.shape}"


if __name__ == "__main__":
    main()
