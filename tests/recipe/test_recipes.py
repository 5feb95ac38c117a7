"""The recipes that are shipped: valid, runnable as their head says, and of the released sizes where they claim so."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys

import pytest

from mindglm import recipe
from mindglm.cli.main import build_parser
from mindglm.plan import hardware, search
from mindglm.recipe import differences
from tests.recipe import plan_heads
from tests.recipe.shipped import RECIPES, ROOT, relative

FULL_SIZE = plan_heads.FULL_SIZE
STAGES = [path for path in FULL_SIZE if path.parent.name == "glm_image"]
VARIANTS = [path for path in FULL_SIZE if path not in STAGES]
OWN_RUNS = [path for path in VARIANTS if "from_released" in path.stem and path.parent.name in ("16_nodes", "128_nodes")]
SAME_RUNS = [path for path in VARIANTS if path not in OWN_RUNS]
PRETRAINING = {"ar_9b_pretrain_256", "ar_9b_pretrain_512", "ar_9b_pretrain_mixed", "dit_7b_pretrain_256",
               "dit_7b_pretrain_512", "dit_7b_pretrain_1024", "dit_7b_pretrain_mixed"}
FROM_RELEASED = {"ar_9b_from_released", "dit_7b_from_released"}
LAYOUT = ("parallel_config", "recompute_config", "runner_config.gradient_accumulation_steps")
DEVICES_PER_NODE = 8


def commands(path):
    """Commands of the comment that opens a recipe, continued lines joined."""
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    text = "\n".join(head).replace("\\\n", " ")
    return [line for line in text.splitlines() if re.match(r"(mindglm|python|bash) ", line)]


def nodes(path):
    """How many nodes a full-size recipe is for, by its head."""
    return int(re.search(r"(\d+) nodes? of Atlas", path.read_text().replace("\n# ", " "))[1])


def test_all_recipes_are_there():
    assert {path.stem for path in RECIPES if path.parent.name == "nano"} == {"vae", "tokenizer", "glyph", "ar", "dit"}
    counts = {}
    for path in FULL_SIZE:
        counts.setdefault(path.stem, set()).add(nodes(path))
    assert {name for name, found in counts.items() if found == {1, 4, 16, 128}} == PRETRAINING | FROM_RELEASED
    assert {name: found for name, found in counts.items() if name not in PRETRAINING | FROM_RELEASED} == {
        "ar_9b_sft": {1, 4, 16}, "dit_7b_sft": {1, 4, 16}}


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_is_valid_and_prints_itself(path):
    loaded = recipe.load(path)
    assert recipe.loads(recipe.to_yaml(loaded)) == loaded
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_opens_with_the_command_that_runs_it(path):
    """The commands are parsed by the real parsers; the overrides they give make a valid recipe."""
    trains = 0
    for command in commands(path):
        words = shlex.split(command)
        if words[0] == "bash":
            trains += 1
            assert words[1] == f"launch/train_{'node' if path not in FULL_SIZE or nodes(path) == 1 else 'cluster'}.sh"
            place = words.index(str(path.relative_to(ROOT)))
            recipe.load(path, words[place + 1:])
        elif words[0] == "mindglm":
            args = build_parser().parse_args(words[1:])
            if args.command == "train":
                trains += 1
                assert ROOT / args.recipe == path
                assert recipe.load(path, args.overrides).parallel_config.data_parallel == 1
    assert trains >= 1


@pytest.mark.parametrize("stem, folder", [("dit_7b_from_released", ""), ("ar_9b_sft", "16_nodes")])
def test_the_launch_scripts_take_the_command(tmp_path, stem, folder):
    path = ROOT / "recipes" / "glm_image" / folder / f"{stem}.yaml"
    (tmp_path / "hosts.txt").write_text("".join(f"node{i} slots=8\n" for i in range(nodes(path))))
    words = shlex.split(commands(path)[-1].replace("hosts.txt", str(tmp_path / "hosts.txt")))
    environment = {**os.environ, "MINDGLM_VENV": sys.prefix}
    done = subprocess.run([*words[:2], "--dry-run", *words[2:]], cwd=ROOT, capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 0, done.stderr
    assert f"--worker_num={nodes(path) * DEVICES_PER_NODE}" in done.stdout.replace("--worker_num ", "--worker_num=")


@pytest.mark.parametrize("path", FULL_SIZE, ids=relative)
def test_layout_fills_the_nodes(path):
    parallel = recipe.load(path).parallel_config
    assert parallel.data_parallel * parallel.pipeline_stage == nodes(path) * DEVICES_PER_NODE


@pytest.mark.parametrize("path", SAME_RUNS, ids=relative)
def test_other_node_counts_are_the_same_run(path):
    """Only the layout differs from the recipe of that name, so that a run may go on with more or fewer nodes."""
    main = path.parents[1] / path.name
    changes = differences.of_resume(recipe.to_yaml(recipe.load(main)), recipe.to_yaml(recipe.load(path)))
    assert changes and all(change.key.startswith(LAYOUT) and change.kind == "safe" for change in changes)


@pytest.mark.parametrize("path", OWN_RUNS, ids=relative)
def test_more_nodes_for_released_weights_are_runs_of_their_own(path):
    """A batch for one server cannot be shared by so many: two pictures a device, all else as in the recipe it is of."""
    main, own = recipe.load(path.parents[1] / path.name), recipe.load(path)
    changed = {change.key for change in differences.between(recipe.to_yaml(main), recipe.to_yaml(own))}
    others = {key for key in changed if not key.startswith(LAYOUT)}
    starts = {"pretrained_model_dir"} if path.stem.startswith("dit") else set()
    assert others == {"output_dir", "runner_config.global_batch_size"} | starts
    assert own.runner_config.global_batch_size == 2 * DEVICES_PER_NODE * nodes(path)
    assert own.output_dir == f"{main.output_dir}_{path.parent.name}"
    if starts:
        ar = recipe.load(path.with_name("ar_9b_from_released.yaml"))
        assert own.pretrained_model_dir == f"{ar.output_dir}/model"


def test_output_folders_are_not_shared():
    folders = [recipe.load(path).output_dir for path in RECIPES if path not in SAME_RUNS]
    assert len(set(folders)) == len(folders)


def test_recipes_start_from_what_others_write():
    """A folder below output/ is the export of another recipe, of the stage before."""
    exports = {f"{recipe.load(path).output_dir}/model" for path in RECIPES}
    starts = [recipe.load(path).pretrained_model_dir for path in FULL_SIZE]
    assert {start for start in starts if start.startswith("output/")} <= exports


@pytest.mark.parametrize("path", STAGES, ids=relative)
def test_dataset_is_made_by_the_command_in_the_head(path):
    loaded = recipe.load(path)
    prepare = build_parser().parse_args(shlex.split(commands(path)[0])[1:])
    assert prepare.command == "prepare"
    assert (prepare.model, prepare.output) == (loaded.pretrained_model_dir, loaded.train_dataset.dataset_dir)
    assert sorted(prepare.bucket) == sorted(loaded.train_dataset.sizes)


@pytest.mark.parametrize("path", STAGES, ids=relative)
def test_full_size_recipes_say_what_is_public_and_what_is_ours(path):
    text = path.read_text().replace("\n# ", " ")
    assert "Public, by zai-org's checkpoint, README and release blog of GLM-Image" in text and " Ours: " in text


@pytest.mark.parametrize("path", FULL_SIZE, ids=relative)
def test_head_tells_the_plan(path):
    """Its figures are those of the planner, to 2 %: `python -m tests.recipe.plan_heads` writes them anew."""
    plan = plan_heads.planned(path)
    stands, expected = plan_heads.written(path.read_text()), plan_heads.head(plan)
    assert plan_heads.roomy(plan)
    assert plan_heads.words(stands) == plan_heads.words(expected)
    assert plan_heads.figures(stands) == pytest.approx(plan_heads.figures(expected), rel=0.02, abs=0.011)


@pytest.mark.slow
@pytest.mark.parametrize("path", FULL_SIZE, ids=relative)
def test_layout_is_among_the_fastest_that_fit(path):
    """Of those that leave a tenth of the memory and keep a pipeline within a node."""
    plan = plan_heads.planned(path)
    found = search.best(plan.workload, hardware.load("atlas800t-a2"), plan.layout.devices, count=24).plans
    best = next(other for other in found if plan_heads.roomy(other))
    assert plan_heads.roomy(plan) and plan.time.total <= 1.05 * best.time.total


def test_full_size_structures_are_the_released_ones():
    """Numbers of the reference, sections 2.2 to 2.6; parameter counts of its section 1."""
    structures = {path.stem: recipe.load(path).model.model_config for path in FULL_SIZE}
    ar, dit = structures["ar_9b_pretrain_256"], structures["dit_7b_pretrain_256"]
    assert all(config == (ar if name.startswith("ar") else dit) for name, config in structures.items())

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
