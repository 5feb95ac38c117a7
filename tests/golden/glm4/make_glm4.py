"""Makes the GLM-4 fixtures: a tiny random `Glm4ForCausalLM`, its outputs, and what a GLM-Image made of it must give.

    /tmp/golden/bin/python tests/golden/glm4/make_glm4.py --out tests/golden/glm4

in the environment of tests/golden/requirements.txt. Writes checkpoint/ (as transformers saves it, in two shards),
ar_config.json (the structure to make of it) and expected.safetensors: prompt ids, and the hidden states after the last
norm that the torch GLM-4 gives for them in float32. A GLM-Image started from it, given the same ids behind its image
ids and plain positions, must give the same hidden states: that proves row shift and permutation.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import Glm4Config, Glm4ForCausalLM

IMAGE_IDS, CODES, VOCAB, TEXT_VOCAB = 80, 64, 352, 256
SHAPE = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def ar_config() -> dict:
    """config.json of the GLM-Image AR generator that has this language model."""
    return {
        "architectures": ["GlmImageForConditionalGeneration"], "dtype": "bfloat16", "model_type": "glm_image",
        "image_start_token_id": 64, "image_end_token_id": 65, "image_token_id": VOCAB - 2,
        "tie_word_embeddings": False,
        "text_config": {
            **SHAPE, "vocab_size": VOCAB, "vision_vocab_size": IMAGE_IDS, "pad_token_id": 336, "eos_token_id": 65,
            "hidden_act": "silu", "attention_bias": True, "max_position_embeddings": 4096, "initializer_range": 0.05,
            "model_type": "glm_image_text", "rope_parameters": {**ROPE, "mrope_section": [1, 1, 1]}},
        "vision_config": {"depth": 1, "hidden_size": 24, "num_heads": 2, "intermediate_size": 40, "image_size": 64,
                          "patch_size": 16, "hidden_act": "gelu", "model_type": "glm_image_vision"},
        "vq_config": {"num_embeddings": CODES, "embed_dim": 12, "latent_channels": 24,
                      "model_type": "glm_image_vqmodel"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    config = Glm4Config(**SHAPE, head_dim=SHAPE["hidden_size"] // SHAPE["num_attention_heads"], vocab_size=TEXT_VOCAB,
                        rope_parameters=ROPE, attention_bias=True, pad_token_id=0, eos_token_id=[1],
                        tie_word_embeddings=False)
    model = Glm4ForCausalLM(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, all representable in bfloat16
            parameter.copy_((torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1) * 0.5).bfloat16().float())
        ids = torch.randint(0, TEXT_VOCAB, (2, 9))
        hidden = model.model(ids).last_hidden_state
    model.bfloat16().save_pretrained(out / "checkpoint", max_shard_size="60KB")
    (out / "checkpoint" / "generation_config.json").unlink(missing_ok=True)
    (out / "ar_config.json").write_text(json.dumps(ar_config(), indent=2, sort_keys=True) + "\n")
    save_file({"ids": ids.int(), "hidden": hidden}, out / "expected.safetensors")


if __name__ == "__main__":
    main()
