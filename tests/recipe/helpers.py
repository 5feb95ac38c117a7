"""Small valid recipes as text, for tests to break."""

MODELS = {
    "ArGenerator": """
    type: ArGenerator
    text_config:
      hidden_size: 160
      intermediate_size: 64
      num_hidden_layers: 2
      num_attention_heads: 5
      num_key_value_heads: 1
      mrope_section: [2, 3, 3]
      vocab_size: 352
      vision_vocab_size: 80
    vision_config: {depth: 2, hidden_size: 48, num_heads: 3, intermediate_size: 80, image_size: 128}
    vq_config: {num_embeddings: 64, embed_dim: 24, latent_channels: 48}
    image_start_token_id: 64
    image_end_token_id: 65
    image_token_id: 350
    text_pad_token_id: 336
""",
    "DiTDecoder": """
    type: DiTDecoder
    num_layers: 2
    num_attention_heads: 3
    attention_head_dim: 16
    in_channels: 4
    out_channels: 4
    text_embed_dim: 40
    time_embed_dim: 32
    condition_dim: 16
    prior_vq_quantizer_codebook_size: 64
""",
    "VAE": """
    type: VAE
    block_out_channels: [8, 16, 24, 24]
    layers_per_block: 2
    latent_channels: 4
    norm_num_groups: 4
    latents_mean: [0, 0, 0, 0]
    latents_std: [1, 1, 1, 1]
""",
    "GlyphEncoder": """
    type: GlyphEncoder
    d_model: 40
    d_kv: 8
    d_ff: 72
    num_heads: 3
    num_layers: 2
""",
}


def recipe_text(trainer="ar_next_token", model="ArGenerator", dataset="data/x"):
    """A minimal recipe; line numbers: output_dir 1, trainer 2, runner_config 3, lr_schedule 4, checkpoint 5."""
    return f"""output_dir: out
trainer: {{type: {trainer}, model_name: tiny}}
runner_config: {{global_batch_size: 16, stop_step: 100}}
lr_schedule: {{learning_rate: 1.e-3}}
checkpoint: {{save_checkpoint_steps: 10}}
train_dataset: {{dataset_dir: {dataset}}}
model:
  model_config:{MODELS[model]}"""


KINDS = {
    "ar_next_token": ("ArGenerator", "data/x"),
    "flow_matching": ("DiTDecoder", "data/x"),
    "vae_reconstruction": ("VAE", "data/x"),
    "vq_reconstruction": ("ArGenerator", "data/x"),
    "glyph_alignment": ("GlyphEncoder", "null"),
}


def text_for(trainer):
    model, dataset = KINDS[trainer]
    return recipe_text(trainer, model, dataset)
