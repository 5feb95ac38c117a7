"""Each rule refuses what it should, says so at the right key, and lets the neighbouring value pass."""

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from tests.recipe.helpers import text_for

AR, DIT, VAE, GLYPH = "ar_next_token", "flow_matching", "vae_reconstruction", "glyph_alignment"
MODEL = "model.model_config."
LAYERS = MODEL + "text_config.num_hidden_layers=4"

# trainer, overrides that break one rule, key that is blamed, a part of the message, overrides that mend it
BROKEN = [
    (AR, ["runner_config.global_batch_size=0"], "runner_config.global_batch_size", "at least 1", []),
    (AR, ["runner_config.stop_step=0"], "runner_config.stop_step", "at least 1", []),
    (AR, ["seed=-1"], "seed", "at least 0", ["seed=0"]),
    (
        AR,
        ["parallel_config.data_parallel=3"],
        "runner_config.global_batch_size",
        "given 16, expected a multiple of data_parallel 3 * gradient_accumulation_steps 1 (3), for instance 15",
        ["runner_config.global_batch_size=15"],
    ),
    (
        AR,
        ["runner_config.gradient_accumulation_steps=4", "parallel_config.data_parallel=8"],
        "runner_config.global_batch_size",
        "(32), for instance 32",
        ["parallel_config.data_parallel=4"],
    ),
    (AR, ["parallel_config.model_parallel=2"], "parallel_config.model_parallel", "not yet supported", None),
    (AR, ["parallel_config.context_parallel=2"], "parallel_config.context_parallel", "not yet supported", None),
    (VAE, ["parallel_config.pipeline_stage=2"], "parallel_config.pipeline_stage", "only ar_next_token and flow", None),
    (VAE, ["recompute_config.recompute=true"], "recompute_config", "only ar_next_token and flow_matching", None),
    (
        AR,
        ["parallel_config.micro_batch_num=2"],
        "parallel_config.micro_batch_num",
        "1 with pipeline_stage 1",
        ["parallel_config.pipeline_stage=2"],
    ),
    (
        AR,
        ["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=3"],
        "runner_config.global_batch_size",
        "data_parallel 1 * gradient_accumulation_steps 1 * micro_batch_num 3 (3), for instance 15",
        ["runner_config.global_batch_size=15"],
    ),
    (
        AR,
        ["parallel_config.pipeline_stage=2", "parallel_config.pipeline_chunks=2", LAYERS],
        "parallel_config.pipeline_chunks",
        "1 with pipeline_schedule 1f1b, or interleaved",
        ["parallel_config.pipeline_schedule=interleaved"],
    ),
    (
        AR,
        ["parallel_config.pipeline_stage=2", "parallel_config.pipeline_cuts=[1, 2, 3]"],
        "parallel_config.pipeline_cuts",
        "expected 2 counts, one for each",
        ["parallel_config.pipeline_cuts=[1, 3]"],
    ),
    (AR, ["parallel_config.pipeline_stage=2", "parallel_config.pipeline_cuts=[1, 2]"], "parallel_config.pipeline_cuts",
     "given [1, 2] with sum 3, expected the sum 4: 2 layers", ["parallel_config.pipeline_cuts=[3, 1]"]),
    (AR, ["parallel_config.pipeline_cuts=[0]"], "parallel_config.pipeline_cuts[0]", "at least 1", []),
    (AR, ["parallel_config.pipeline_stage=4"], "parallel_config.pipeline_stage", "at most the model's 2 layers",
     ["parallel_config.pipeline_stage=2"]),
    (DIT, ["parallel_config.pipeline_stage=2", "parallel_config.pipeline_chunks=2",
           "parallel_config.pipeline_schedule=interleaved"], "parallel_config.pipeline_stage",
     "pipeline_stage 2 * pipeline_chunks 2 to be at most the model's 2 layers", [MODEL + "num_layers=4"]),
    (DIT, ["recompute_config.select_recompute=[0, 2, 5]"], "recompute_config.select_recompute",
     "given [2, 5], expected layer numbers below 2", ["recompute_config.select_recompute=[0, 1]"]),
    (AR, ["train_dataset.buckets=[128x128, 256x256]", MODEL + "text_config.max_position_embeddings=300"],
     "train_dataset.buckets[1]", "fewer codes than text_config.max_position_embeddings (300), not 320",
     ["objective.progressive=false"]),
    (AR, ["trainer.model_name=''"], "trainer.model_name", "an empty text", ["trainer.model_name=x"]),
    (AR, ["pretrained_model_dir=''"], "pretrained_model_dir", "an empty text", ["pretrained_model_dir=null"]),
    (AR, ["objective.preview_weight=0"], "objective.preview_weight", "more than 0", ["objective.preview_weight=0.1"]),
    (AR, ["optimizer.weight_decay=2"], "optimizer.weight_decay", "at least 0 and at most 1", []),
    (AR, ["lr_schedule.total_steps=-2"], "lr_schedule.total_steps", "-1, or at least 1", []),
    (AR, [MODEL + "text_config.mrope_section=[9, -2, 1]"], MODEL + "text_config.mrope_section[1]", "at least 0", []),
    (AR, ["recompute_config.recompute=true", "context.mode=0"], "context.mode", "1 with recompute_config", []),
    (
        DIT,
        ["parallel_config.pipeline_stage=2", "model.frozen=[proj_out]"],
        "model.frozen",
        "not yet supported with parallel_config.pipeline_stage",
        ["model.frozen=[]"],
    ),
    (
        AR,
        ["recompute_config.recompute=true", "recompute_config.select_recompute=[1]"],
        "recompute_config.select_recompute",
        "which takes all",
        ["recompute_config.recompute=false"],
    ),
    (AR, ["recompute_config.select_recompute=[-1]"], "recompute_config.select_recompute[0]", "at least 0", []),
    (
        AR,
        ["precision.compute_dtype=bfloat16"],
        "precision.compute_dtype",
        "auto or params_dtype (auto): the models compute in the dtype of their weights",
        ["precision.params_dtype=bfloat16"],
    ),
    (
        AR,
        ["context.device_target=CPU", "precision.params_dtype=bfloat16"],
        "precision.params_dtype",
        "no bfloat16 kernels for matmul",
        ["precision.params_dtype=float32"],
    ),
    (AR, ["strict_numerics=true", "context.mode=0"], "context.mode", "1 with strict_numerics", ["context.mode=1"]),
    (
        AR,
        ["strict_numerics=true", "context.device_target=Ascend"],
        "strict_numerics",
        "have not been measured",
        ["context.device_target=CPU"],
    ),
    (
        AR,
        ["strict_numerics=true", "precision.reduce_dtype=bfloat16"],
        "precision.reduce_dtype",
        "float32 with strict_numerics",
        ["strict_numerics=false"],
    ),
    (AR, ["optimizer.betas=[0.9, 1.0]"], "optimizer.betas[1]", "less than 1", ["optimizer.betas=[0, 0.999]"]),
    (AR, ["optimizer.eps=0"], "optimizer.eps", "more than 0", ["optimizer.eps=1e-12"]),
    (AR, ["ema.decay=1"], "ema.decay", "less than 1", ["ema.decay=0.999"]),
    (AR, ["lr_schedule.lr_end=1"], "lr_schedule.lr_end", "at most learning_rate (0.001)", ["lr_schedule.lr_end=1e-3"]),
    (AR, ["lr_schedule.warmup_steps=100"], "lr_schedule.warmup_steps", "less than runner_config.stop_step (100)", []),
    (
        AR,
        ["lr_schedule.total_steps=50", "lr_schedule.warmup_steps=50"],
        "lr_schedule.warmup_steps",
        "lr_schedule.total_steps (50)",
        ["lr_schedule.total_steps=51"],
    ),
    (AR, ["lr_schedule.total_steps=0"], "lr_schedule.total_steps", "-1", ["lr_schedule.total_steps=-1"]),
    (AR, ["model.frozen=['']"], "model.frozen[0]", "an empty text", ["model.frozen=[lm_head]"]),
    (AR, ["checkpoint.prefix=a/b"], "checkpoint.prefix", "without '/'", ["checkpoint.prefix=a"]),
    (AR, ["output_dir=''"], "output_dir", "given an empty text, expected text", ["output_dir=x"]),
    (AR, ["objective.prompt_dropout=1.5"], "objective.prompt_dropout", "at least 0 and at most 1", []),
    (AR, ["train_dataset.dataset_dir=null"], "train_dataset.dataset_dir", "`mindglm prepare`", None),
    (GLYPH, ["train_dataset.dataset_dir=data/x"], "train_dataset.dataset_dir", "procedural", None),
    (
        AR,
        ["trainer.type=flow_matching"],
        MODEL + "type",
        "expected DiTDecoder for flow_matching; ArGenerator goes",
        None,
    ),
    (AR, ["trainer.type=flow_matching"], MODEL + "type", "ar_next_token or vq_reconstruction", None),
    (
        AR,
        [MODEL + "text_config.num_attention_heads=6"],
        MODEL + "text_config.hidden_size",
        "num_attention_heads (6)",
        None,
    ),
    (
        AR,
        [MODEL + "text_config.num_key_value_heads=2"],
        MODEL + "text_config.num_attention_heads",
        "given 5, expected a multiple of num_key_value_heads (2)",
        [MODEL + "text_config.num_key_value_heads=5"],
    ),
    (
        AR,
        [MODEL + "text_config.mrope_section=[2, 3, 4]"],
        MODEL + "text_config.mrope_section",
        "given [2, 3, 4] with sum 9, expected the sum 8: half of head_dim 32 * partial_rotary_factor 0.5",
        [MODEL + "text_config.mrope_section=[4, 2, 2]"],
    ),
    (
        AR,
        [MODEL + "text_config.partial_rotary_factor=0.75"],
        MODEL + "text_config.mrope_section",
        "expected the sum 12",
        [MODEL + "text_config.mrope_section=[4, 4, 4]"],
    ),
    (AR, [MODEL + "text_config.partial_rotary_factor=0.6"], MODEL + "text_config.partial_rotary_factor", "even", None),
    (
        AR,
        [MODEL + "text_config.partial_rotary_factor=1.5"],
        MODEL + "text_config.partial_rotary_factor",
        "at most 1",
        None,
    ),
    (AR, [MODEL + "text_config.num_hidden_layers=0"], MODEL + "text_config.num_hidden_layers", "more than 0", None),
    (AR, [MODEL + "text_config.vision_vocab_size=400"], MODEL + "text_config.vocab_size", "text ids follow", None),
    (AR, [MODEL + "vision_config.num_heads=5"], MODEL + "vision_config.hidden_size", "multiple of num_heads (5)", None),
    (AR, [MODEL + "vision_config.image_size=100"], MODEL + "vision_config.image_size", "(16), for instance 96", None),
    (AR, [MODEL + "vision_config.patch_size=14"], MODEL + "vision_config.patch_size", "expected 16", None),
    (AR, [MODEL + "vq_config.latent_channels=40"], MODEL + "vq_config.latent_channels", "hidden_size (48)", None),
    (AR, [MODEL + "image_start_token_id=63"], MODEL + "image_start_token_id", "expected 64 to 79", None),
    (AR, [MODEL + "image_end_token_id=64"], MODEL + "image_end_token_id", "other than image_start_token_id", None),
    (AR, [MODEL + "image_token_id=352"], MODEL + "image_token_id", "expected 80 to 351", None),
    (AR, [MODEL + "text_pad_token_id=0"], MODEL + "text_pad_token_id", "a text id", None),
    (DIT, [MODEL + "attention_head_dim=18"], MODEL + "attention_head_dim", "a multiple of 4", None),
    (DIT, [MODEL + "time_embed_dim=33"], MODEL + "time_embed_dim", "an even number", None),
    (DIT, [MODEL + "condition_dim=17"], MODEL + "condition_dim", "an even number", None),
    (DIT, [MODEL + "patch_size=4"], MODEL + "patch_size", "expected 2", None),
    (DIT, [MODEL + "out_channels=8"], MODEL + "out_channels", "in_channels (4)", [MODEL + "in_channels=8"]),
    (DIT, ["objective.timestep_density=normal"], "objective.timestep_density", "nearest: logit_normal", None),
    (VAE, [MODEL + "block_out_channels=[8, 16, 24]"], MODEL + "block_out_channels", "given 3 levels, expected 4", None),
    (VAE, [MODEL + "norm_num_groups=5"], MODEL + "block_out_channels[0]", "given 8, expected a multiple of", None),
    (VAE, [MODEL + "latents_mean=[0, 0]"], MODEL + "latents_mean", "given 2 numbers, expected one for each", None),
    (VAE, [MODEL + "latents_std=[1, 1, 0, 1]"], MODEL + "latents_std[2]", "more than 0", None),
    (VAE, ["objective.crop_size=60"], "objective.crop_size", "(8), for instance 64", ["objective.crop_size=56"]),
    (GLYPH, [MODEL + "vocab_size=256"], MODEL + "vocab_size", "at least 259", None),
    (GLYPH, [MODEL + "relative_attention_num_buckets=30"], MODEL + "relative_attention_num_buckets", "of 4", None),
    (
        GLYPH,
        [MODEL + "relative_attention_max_distance=8"],
        MODEL + "relative_attention_max_distance",
        "more than the 8",
        None,
    ),
    (GLYPH, ["objective.max_bytes=0"], "objective.max_bytes", "at least 1", None),
]


@pytest.mark.parametrize(
    "trainer, overrides, key, message, mended", BROKEN, ids=[f"{row[0]}-{row[1][0]}" for row in BROKEN]
)
def test_rule(trainer, overrides, key, message, mended):
    with pytest.raises(UserError) as caught:
        recipe.loads(text_for(trainer), "r.yaml", overrides)
    lines = [line for line in str(caught.value).splitlines() if f": {key}: " in line]
    assert len(lines) == 1 and message in lines[0]
    if mended:
        recipe.loads(text_for(trainer), "r.yaml", [*overrides, *mended])


def test_a_rule_points_at_the_line_of_the_key_it_blames():
    text = text_for(AR).replace("stop_step: 100", "stop_step: 100, gradient_accumulation_steps: 3")
    with pytest.raises(UserError, match=r"^r\.yaml:3:36: runner_config\.global_batch_size: given 16, expected a mul"):
        recipe.loads(text, "r.yaml")


def test_a_rule_over_a_default_points_at_its_section():
    text = text_for(VAE).replace("latents_std", "in_channels: 4\n    latents_std")
    with pytest.raises(UserError, match=r"^r\.yaml:15:18: model\.model_config\.in_channels: given 4, expected 3"):
        recipe.loads(text, "r.yaml")
    with pytest.raises(UserError, match=r"^r\.yaml:6:1: train_dataset\.dataset_dir: given nothing"):
        recipe.loads(text_for(AR).replace("{dataset_dir: data/x}", "{}"), "r.yaml")


def test_rules_are_still_read_beside_a_broken_value():
    """A value of the wrong type silences only the rules that need it."""
    overrides = [MODEL + "num_layers=many", MODEL + "attention_head_dim=18", "ema.warmup_steps=x", "ema.decay=3"]
    with pytest.raises(UserError) as caught:
        recipe.loads(text_for(DIT), "r.yaml", overrides)
    assert len(str(caught.value).splitlines()) == 1 + 4


VISION, TEXT = MODEL + "vision_config.", MODEL + "text_config."
# trainer, overrides with several mistakes, the keys that are blamed: those whose rule another mistake might silence
SEVERAL = [
    (AR, [VISION + "num_heads=fast", VISION + "in_channels=4", VISION + "patch_size=8", VISION + "image_size=100"],
     [VISION + "num_heads", VISION + "in_channels", VISION + "patch_size", VISION + "image_size"]),
    (AR, ["parallel_config.pipeline_stage=fast", "parallel_config.pipeline_chunks=3"],
     ["parallel_config.pipeline_stage", "parallel_config.pipeline_chunks"]),
    (AR, ["parallel_config.pipeline_stage=2", "model.frozen=all", "context.mode=0"], ["model.frozen", "context.mode"]),
    (AR, ["parallel_config.pipeline_stage=9", "parallel_config.pipeline_cuts=x", "context.mode=0",
          "recompute_config.select_recompute=[0, 7, x]"],
     ["parallel_config.pipeline_stage", "parallel_config.pipeline_cuts", "context.mode",
      "recompute_config.select_recompute[2]", "recompute_config.select_recompute"]),
    (AR, ["strict_numerics=true", "context.mode=0", "context.device_target=x", "precision.reduce_dtype=bfloat16"],
     ["context.mode", "context.device_target", "precision.reduce_dtype"]),
    (AR, [TEXT + "hidden_size=wide", TEXT + "num_attention_heads=6", TEXT + "num_key_value_heads=4",
          TEXT + "partial_rotary_factor=2", MODEL + "vq_config.latent_channels=32", VISION + "depth=deep"],
     [TEXT + "hidden_size", TEXT + "num_attention_heads", TEXT + "partial_rotary_factor",
      MODEL + "vq_config.latent_channels", VISION + "depth"]),
    (AR, [MODEL + "image_start_token_id=x", MODEL + "image_end_token_id=1", MODEL + "text_pad_token_id=2",
          TEXT + "hidden_act=3", TEXT + "num_hidden_layers=x"],
     [MODEL + "image_start_token_id", MODEL + "image_end_token_id", MODEL + "text_pad_token_id",
      TEXT + "hidden_act", TEXT + "num_hidden_layers"]),
    (DIT, [MODEL + "attention_head_dim=x", MODEL + "time_embed_dim=31", MODEL + "condition_dim=y",
           MODEL + "patch_size=z", MODEL + "out_channels=5"],
     [MODEL + "attention_head_dim", MODEL + "time_embed_dim", MODEL + "condition_dim", MODEL + "patch_size",
      MODEL + "out_channels"]),
    (VAE, [MODEL + "block_out_channels=[8, x, 18, 24]", MODEL + "in_channels=x", MODEL + "out_channels=4",
           MODEL + "latents_mean=0", MODEL + "latents_std=[1, 0]"],
     [MODEL + "block_out_channels[1]", MODEL + "block_out_channels[2]", MODEL + "in_channels", MODEL + "out_channels",
      MODEL + "latents_mean", MODEL + "latents_std[1]", MODEL + "latents_std"]),
    (GLYPH, [MODEL + "vocab_size=9", MODEL + "relative_attention_num_buckets=30",
             MODEL + "relative_attention_max_distance=far"],
     [MODEL + "vocab_size", MODEL + "relative_attention_num_buckets", MODEL + "relative_attention_max_distance"]),
    (AR, ["optimizer.betas=[2, fast]"], ["optimizer.betas[0]", "optimizer.betas[1]"]),
    (AR, ["train_dataset.buckets=[1024x1000, 32x320, abc, 1, 64x64, 64x64, 2048x2048]"],
     [f"train_dataset.buckets[{i}]" for i in (0, 1, 2, 3, 5, 6)]),
]


@pytest.mark.parametrize("trainer, overrides, keys", SEVERAL, ids=[f"{row[0]}-{row[1][0]}" for row in SEVERAL])
def test_no_mistake_hides_another(trainer, overrides, keys):
    with pytest.raises(UserError) as caught:
        recipe.loads(text_for(trainer), "r.yaml", overrides)
    assert sorted(line.split(": ")[1] for line in str(caught.value).splitlines()[1:]) == sorted(keys), caught.value
