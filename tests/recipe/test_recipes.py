"""The recipes that are shipped: valid, runnable as their head says, and of the released sizes where they claim so."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from mindglm import recipe
from mindglm.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def relative(path):
    return str(path.relative_to(ROOT))


def commands(path):
    """Commands of the comment that opens a recipe, continued lines joined."""
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    text = "\n".join(head).replace("\\\n", " ")
    return [line for line in text.splitlines() if re.match(r"(msrun|mindglm|python) ", line)]


def test_all_recipes_are_there():
    assert {path.stem for path in RECIPES if path.parent.name == "nano"} == {"vae", "tokenizer", "glyph", "ar", "dit"}
    big = {path.stem for path in RECIPES if path.parent.name == "glm_image"}
    assert big == {"ar_9b_pretrain", "ar_9b_sft", "dit_7b_pretrain", "dit_7b_sft"}


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_is_valid_and_prints_itself(path):
    loaded = recipe.load(path)
    assert recipe.loads(recipe.to_yaml(loaded)) == loaded


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_opens_with_the_command_that_runs_it(path):
    """The commands are parsed by the real parsers; the overrides they give make a valid recipe."""
    trains = 0
    for command in commands(path):
        words = shlex.split(command)
        workers = int(words[words.index("--worker_num") + 1]) if words[0] == "msrun" else 1
        arguments = words[words.index("mindglm") + 1 :]
        args = build_parser().parse_args(arguments)
        if args.command == "train":
            trains += 1
            assert ROOT / args.recipe == path
            assert recipe.load(path, args.overrides).parallel_config.data_parallel == workers
    assert trains >= 1


def test_output_folders_are_not_shared():
    folders = [recipe.load(path).output_dir for path in RECIPES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "glm_image"], ids=relative)
def test_full_size_recipes_say_whose_hyper_parameters_they_are(path):
    assert "are ours" in path.read_text()


def test_full_size_structures_are_the_released_ones():
    """Numbers of the reference, sections 2.2 to 2.6; parameter counts of its section 1."""
    configs = {path.stem: recipe.load(path).model.model_config for path in RECIPES}
    ar, dit = configs["ar_9b_pretrain"], configs["dit_7b_pretrain"]
    assert ar == configs["ar_9b_sft"] and dit == configs["dit_7b_sft"]

    text = ar.text_config
    assert (text.head_dim, text.rotary_dim, text.mrope_section) == (128, 64, (8, 12, 12))
    assert (text.rope_theta, text.rms_norm_eps, text.max_position_embeddings) == (10000.0, 1e-5, 131072)
    kv_width = text.num_key_value_heads * text.head_dim
    attention = 2 * text.hidden_size**2 + text.hidden_size + 2 * (kv_width * text.hidden_size + kv_width)
    layer = attention + 3 * text.hidden_size * text.intermediate_size + 4 * text.hidden_size
    embedding = text.vocab_size * text.hidden_size
    assert embedding + text.num_hidden_layers * layer + text.hidden_size == 8_847_155_200
    assert text.vision_vocab_size * text.hidden_size == 67_633_152
    assert (ar.image_start_token_id, ar.image_end_token_id) == (16384, 16385)
    assert (ar.image_token_id, ar.text_pad_token_id) == (167855, 167841)

    vision, wide = ar.vision_config, ar.vision_config.hidden_size
    block = 4 * wide**2 + 4 * wide + 2 * wide * vision.intermediate_size + vision.intermediate_size + wide + 4 * wide
    stem = vision.patch_dim * wide + wide + vision.table_side**2 * wide
    assert stem + vision.depth * block == 1_159_607_808
    vq = ar.vq_config
    convs = 2 * vq.latent_channels * vq.embed_dim + vq.embed_dim + vq.latent_channels
    assert vq.num_embeddings * vq.embed_dim + convs == 39_849_472

    hidden, times = dit.hidden_size, dit.time_embed_dim
    dit_block = 12 * hidden * (times + 1) + 4 * (hidden**2 + hidden) + 8 * hidden**2 + 5 * hidden
    glyph = (dit.text_embed_dim + 1) * hidden + hidden**2 + hidden
    prior = dit.prior_vq_quantizer_codebook_size * hidden + 2 * (hidden**2 + hidden)
    time = 3 * (times**2 + times) + 4 * dit.condition_dim * times + times
    patch = dit.in_channels * dit.patch_size**2
    ends = (patch + 1) * hidden + 2 * hidden * (times + 1) + patch * (hidden + 1)
    assert glyph + prior + time + ends + dit.num_layers * dit_block == 6_926_882_880


def test_nano_recipes_fit_each_other():
    nano = {path.stem: recipe.load(path).model.model_config for path in RECIPES if path.parent.name == "nano"}
    # The tokenizer's run carries the decoder's structure along without building it: rope_theta may be tuned since.
    decoder = nano["tokenizer"].text_config
    theta = dataclasses.replace(decoder, rope_theta=nano["ar"].text_config.rope_theta)
    assert dataclasses.replace(nano["tokenizer"], text_config=theta) == nano["ar"]
    assert nano["dit"].prior_vq_quantizer_codebook_size == nano["ar"].num_codes
    assert nano["dit"].text_embed_dim == nano["glyph"].d_model
    assert nano["dit"].in_channels == nano["vae"].latent_channels
