"""What is measured, as plain data that both sides read: structures (in make_golden's terms) and the work of each task.

small and medium differ in width (256 and 768); the pictures, and so the sequences, are the same. Both are real
structures of the family: grouped heads, three rotary axes, preview and large codes, glyph tokens.
"""

HEIGHT = WIDTH = 128
PROMPT = "a red shop sign 'OPEN' beside a green door"
STEPS, GUIDANCE = 8, 1.5
"""Of the whole pipeline."""

TASKS = ("ar_train_step", "dit_train_step", "ar_decode", "vae_decode", "pipeline")

_COMMON = {
    "codes": 256, "vision_vocab": 272, "min_side": 32,
    "vision": {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "image_size": 256},
    "vq": {"embed_dim": 32},
}

STRUCTURES = {
    "small": {
        **_COMMON,
        "ar": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
               "num_key_value_heads": 2, "mrope_section": [2, 3, 3]},
        "dit": {"num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 32, "time_embed_dim": 128,
                "condition_dim": 32},
        "vae": {"block_out_channels": [16, 32, 64, 64], "layers_per_block": 2, "latent_channels": 8,
                "norm_num_groups": 8},
        "t5": {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2},
    },
    "medium": {
        **_COMMON,
        "ar": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12,
               "num_key_value_heads": 2, "mrope_section": [4, 6, 6]},
        "dit": {"num_layers": 4, "num_attention_heads": 12, "attention_head_dim": 64, "time_embed_dim": 256,
                "condition_dim": 64},
        "vae": {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 2, "latent_channels": 16,
                "norm_num_groups": 16},
        "t5": {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 512, "num_layers": 2},
    },
}

AR_SHAPE = {"small": (4, 24), "medium": (2, 24)}
"""Sequences in a training step, and prompt ids before the 256 preview and 16 large codes of a 128 x 128 picture."""
DIT_SHAPE = {"small": (4, 32, 8), "medium": (2, 32, 8)}
"""Pictures in a training step, latent side (256 image tokens), glyph tokens."""
GRIDS = ((4, 4), (16, 16))
"""Large and preview grid of a 128 x 128 picture."""
VAE_SIDE = {"small": 16, "medium": 16}
"""Latent side of the decoded picture."""

DESCRIPTIONS = {
    "ar_train_step": "AR train step (forward, backward, clip, AdamW)",
    "dit_train_step": "DiT train step (forward, backward, clip, AdamW)",
    "ar_decode": "AR decode of one picture's 272 codes, batch 1",
    "vae_decode": "VAE decode, 128 x 128",
    "pipeline": f"text to image, 128 x 128, {STEPS} flow steps",
}
