"""A cluster recipe's pipeline on a small machine: widths shrunk; depth, cut into stages, schedule and names kept.

    bash launch/rehearse.sh RECIPE [options] [key=value ...]

Every process of one pipeline column runs the trainer for a few steps on made-up samples, with real transport. Rank 0
then holds what happened against what the full-size recipe planned, line by line; exit code 1 when a line differs.
What it cannot tell: memory, speed and number formats of the cluster.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys

import numpy as np

from mindglm import recipe as recipes
from mindglm.errors import UserError, exit_code
from mindglm.parallel import transport

HEADS, HEAD_DIM, GLYPH_WIDTH, TIME_WIDTH, CONDITION_WIDTH = 4, 16, 48, 32, 16
PROMPT_TOKENS, GLYPH_TOKENS = 64, 32  # of the full-size sample that the plan counts with
MARK = "rehearsal"  # an empty file in a folder that a rehearsal made and another one may remove


# ---- shrinking: pure functions of recipes ----


def shrunk_model(config, model_type: str):
    """The same depth, vocabulary and codes at a width of 64."""
    replace, width = dataclasses.replace, HEADS * HEAD_DIM
    if model_type == "DiTDecoder":
        return replace(config, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, text_embed_dim=GLYPH_WIDTH,
                       time_embed_dim=TIME_WIDTH, condition_dim=CONDITION_WIDTH)
    text = config.text_config
    kv_heads = max(1, HEADS * text.num_key_value_heads // text.num_attention_heads)
    rotary = int(HEAD_DIM * text.partial_rotary_factor) // 2
    sections = (rotary - 2 * (rotary // 3), rotary // 3, rotary // 3)
    return replace(config, text_config=replace(
        text, hidden_size=width, intermediate_size=max(8, width * text.intermediate_size // text.hidden_size // 8 * 8),
        num_attention_heads=HEADS, num_key_value_heads=kv_heads, mrope_section=sections))


def shrunk(recipe, cuts: tuple[int, ...], args: argparse.Namespace):
    """The recipe of the rehearsal. cuts: units of each stage, as the full size is cut."""
    replace, micro_batches = dataclasses.replace, args.micro_batches
    return replace(
        recipe, output_dir=args.output, pretrained_model_dir=None, resume_training=False,
        runner_config=replace(recipe.runner_config, global_batch_size=args.data_parallel * micro_batches,
                              gradient_accumulation_steps=1, stop_step=args.steps),
        context=replace(recipe.context, device_target="CPU", mode=1),
        parallel_config=replace(recipe.parallel_config, data_parallel=args.data_parallel, pipeline_cuts=cuts,
                                micro_batch_num=micro_batches),
        precision=replace(recipe.precision, params_dtype="auto", compute_dtype="auto"),
        lr_schedule=replace(recipe.lr_schedule, total_steps=-1, warmup_steps=0),
        model=replace(recipe.model, model_config=shrunk_model(recipe.model.model_config, recipe.model_type)),
        validation=replace(recipe.validation, eval_step_interval=0),
        checkpoint=replace(recipe.checkpoint, keep_best_max=0), train_dataset=type(recipe.train_dataset)(),
        monitor_config=replace(recipe.monitor_config, tensorboard=False, sample_step_interval=0))


class Samples:
    """Made-up samples of different lengths, functions of their number alone."""

    def __init__(self, recipe):
        self._config, self._kind = recipe.model.model_config, recipe.model_type

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, i: int) -> dict:
        rng, config = np.random.default_rng(i), self._config
        if self._kind == "DiTDecoder":
            codes = rng.integers(config.prior_vq_quantizer_codebook_size, size=(4, 4)).astype(np.int32)
            glyph = rng.standard_normal((1 + i % 7, config.text_embed_dim)).astype(np.float32)
            return {"id": str(i), "index": i, "large_codes": codes, "glyph": glyph,
                    "empty_glyph": np.zeros((1, config.text_embed_dim), np.float32),
                    "latents": rng.standard_normal((config.in_channels, 16, 16)).astype(np.float32),
                    "target_size": np.array([128, 128]), "crop": np.zeros(2, int)}
        text = config.text_config
        words = rng.integers(text.vision_vocab_size, text.vocab_size, size=4 + i % 9)
        closes = words[-1]  # a prompt ends in two grids, each closed by the same id
        prompt = np.append(words, [words[0], closes, config.image_start_token_id]).astype(np.int32)
        large, preview = (rng.integers(config.num_codes, size=(4, 4)).astype(np.int32) for _ in range(2))
        return {"id": str(i), "index": i, "prompt_ids": prompt, "empty_prompt_ids": prompt[-1:],
                "large_codes": large, "preview_codes": preview}


# ---- the plan, from the full-size recipe ----


def stage_ranges(recipe, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """The units of every stage of the full-size model for samples of this size in pixels."""
    from mindglm.plan import cuts

    section, config = recipe.parallel_config, recipe.model.model_config
    count = section.pipeline_stage * section.pipeline_chunks
    flops = unit_flops(recipe, height, width)
    if section.pipeline_cuts:
        return cuts.explicit(section.pipeline_cuts, len(flops), count)
    return cuts.balanced(flops, count)


def unit_flops(recipe, height: int, width: int) -> list[int]:
    """Forward FLOPs of the units of the full-size model, one sample."""
    config = recipe.model.model_config
    if recipe.model_type == "DiTDecoder":
        from mindglm.models.dit_decoder.stages import unit_flops as flops

        return flops(config, *lengths(recipe, height, width))
    from mindglm.models.ar_generator.stages import unit_flops as flops

    return flops(config, sum(lengths(recipe, height, width)))


def lengths(recipe, height: int, width: int) -> tuple[int, int]:
    """(image tokens, text tokens) of a full-size sample."""
    if recipe.model_type == "DiTDecoder":
        return height * width // (8 * recipe.model.model_config.patch_size) ** 2, GLYPH_TOKENS
    from mindglm.models.ar_generator.processor import target_grids

    (rows, columns), (preview_rows, preview_columns) = target_grids(height, width)
    preview = preview_rows * preview_columns if recipe.objective.progressive else 0
    return rows * columns + preview, PROMPT_TOKENS


def message_elements(config, model_type: str, image_tokens: int, text_tokens: int) -> int:
    """Numbers that one sample's activations hold between two stages (a block is still to come)."""
    if model_type == "DiTDecoder":
        return (image_tokens + text_tokens) * config.hidden_size + config.time_embed_dim
    return (image_tokens + text_tokens) * config.text_config.hidden_size


def expected_sends(schedule, place: int) -> list[tuple[str, int]]:
    """(F or B, peer's place) of each message of a rank, in the order of its table."""
    return [(action.kind[-1], action.peer) for action in schedule.actions[place] if action.kind.startswith("send")]


# ---- what happens, on every rank ----


class Watch:
    """Notes what a rank sends and how many forwards it keeps, by wrapping the pipeline's two inner calls."""

    def __init__(self):
        from mindglm.parallel import pipeline, transport_peers

        self.sends: list[tuple[str, int, int]] = []  # F or B, peer, elements
        self.kept = 0
        send, forward = transport_peers.Peers.send, pipeline._Run.forward

        def noted_send(peers, tensors, peer, tag):
            kind = "F" if tag.startswith("activations") else "B"
            self.sends.append((kind, peer, sum(int(np.prod(tensor.shape)) for tensor in tensors)))
            return send(peers, tensors, peer, tag)

        def noted_forward(run, action):
            forward(run, action)
            self.kept = max(self.kept, len(run.flights))

        transport_peers.Peers.send, pipeline._Run.forward = noted_send, noted_forward


def run(recipe, args: argparse.Namespace) -> None:
    """One process of the rehearsal; rank 0 prints the report. SystemExit(1) when something was not as planned."""
    os.environ.setdefault("LOG_MF_PATH", str(pathlib.Path(args.output) / "log"))
    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)
    from mindglm.train import layout as layouts
    from mindglm.train import objectives, pipeline
    from mindglm.train.loop import Trainer

    ranges = stage_ranges(recipe, args.height, args.width)
    small = shrunk(recipe, tuple(stop - start for start, stop in ranges), args)
    layout, dataset, watch = layouts.here(small.parallel_config), Samples(small), Watch()
    objective = objectives.build(small, pipeline.parts(small, layout, dataset))
    notes = (f"processes\n{pipeline.table(small, layout, dataset)}",)
    trainer = Trainer(small, recipes.to_yaml(small), objective, dataset, None, notes, layout)
    steps = []
    step = trainer._step
    trainer._step = lambda *given: steps.append(step(*given)) or steps[-1]
    trainer.fit()
    shapes = {name: tuple(parameter.shape) for name, parameter in trainer.parameters.items()}
    records = transport.gather_objects((shapes, watch.sends, watch.kept, [result.loss for result in steps]))
    good = report(recipe, small, args, ranges, records) if transport.rank() == 0 else True
    transport.finish()
    if not transport.broadcast_object(good):
        raise SystemExit(1)


# ---- the report ----


def report(recipe, small, args: argparse.Namespace, ranges, records) -> bool:
    """Print plan against rehearsal; whether all is as planned. records: of every rank, in order."""
    from mindglm.plan import schedules, verifier

    section = small.parallel_config
    stages, chunks = section.pipeline_stage, section.pipeline_chunks
    schedule = schedules.build(section.pipeline_schedule, stages, small.micro_batches, chunks)
    verifier.verify(schedule)
    checks = [
        ("tensor names and shapes", *_names(small, records[:stages])),
        ("units on each rank", *_units(small, ranges, stages, records)),
        ("messages: number, order, peers", *_messages(schedule, args, stages, records)),
        ("message sizes", *_sizes(small, args, records)),
        ("forwards kept at a time", *_kept(schedule, stages, records)),
        ("loss finite and the same on all ranks", *_losses(args, records)),
    ]
    print(f"== rehearsal of {args.recipe}: {section.data_parallel} x {stages} of the recipe's "
          f"{recipe.parallel_config.data_parallel} x {stages} processes, {args.steps} steps, widths shrunk")
    print(_balance(recipe, args, ranges, stages))
    print(f"schedule {schedule.kind}, {schedule.micro_batches} micro-batches (the recipe has {recipe.micro_batches}): "
          f"the bubble is {schedule.bubble():.1%} of the time")
    print(_full_size(recipe, args))
    for name, good, detail in checks:
        print(f"{'as planned' if good else 'DIFFERS   '}  {name}: {detail}")
    sys.stdout.flush()
    return all(good for _, good, _ in checks)


def _trained(config, model_type: str) -> dict[str, tuple[int, ...]]:
    from mindglm.train.objectives import component_modules

    tensors = component_modules(model_type)[0].tensors(config)
    own = ("model.language_model.", "lm_head.")
    return {name: tuple(shape) for name, shape in tensors.items() if model_type == "DiTDecoder" or name.startswith(own)}


def _names(small, column) -> tuple[bool, str]:
    planned = _trained(small.model.model_config, small.model_type)
    found = [item for shapes, *_ in column for item in shapes.items()]
    twice = len(found) - len(dict(found))
    wrong = sorted(set(planned.items()) ^ set(found))
    detail = f"{len(planned)} released names, each on one rank"
    if twice or wrong:
        detail = f"{twice} names on two ranks; differing: {wrong[:4]}"
    return not twice and not wrong, detail


def _layers(names) -> set[int]:
    """Numbers of the layers or blocks that parameter names tell of."""
    places = ("layers.", "transformer_blocks.")
    return {int(name.split(place)[1].split(".")[0]) for name in names for place in places if place in name}


def _units(small, ranges, stages, records) -> tuple[bool, str]:
    total = ranges[-1][1]
    for rank, (shapes, *_) in enumerate(records):
        planned = {unit - 1 for start, stop in ranges[rank % stages::stages] for unit in range(start, stop)
                   if 0 < unit < total - 1}
        if _layers(shapes) != planned:
            return False, f"rank {rank} holds layers {sorted(_layers(shapes))}, planned {sorted(planned)}"
    return True, " + ".join(str(stop - start) for start, stop in ranges) + " units, as the full size is cut"


def _messages(schedule, args, stages, records) -> tuple[bool, str]:
    total = 0
    for rank, (_, sends, *_) in enumerate(records):
        first = rank - rank % stages
        planned = [(kind, first + peer) for kind, peer in expected_sends(schedule, rank % stages)] * args.steps
        if [(kind, peer) for kind, peer, _ in sends] != planned:
            return False, f"rank {rank} sent {len(sends)} messages, its table has {len(planned)}, or in another order"
        total = total + len(planned)
    return True, f"{total} in {args.steps} steps"


def _sizes(small, args, records) -> tuple[bool, str]:
    config, kind, options = small.model.model_config, small.model_type, small.objective
    found = {size for _, sends, *_ in records for _, _, size in sends}
    if kind == "DiTDecoder":
        longest = -(-7 // options.glyph_pad_to) * options.glyph_pad_to
        planned = {message_elements(config, kind, 64, text) for text in range(options.glyph_pad_to, longest + 1,
                                                                              options.glyph_pad_to)}
        planned = planned | {64 * config.hidden_size + config.time_embed_dim}  # no block is left behind the last
    else:
        multiple = options.pad_to_multiple
        planned = {message_elements(config, kind, 0, length) for length in range(multiple, 96 + multiple, multiple)}
    wrong = sorted(found - planned)
    return not wrong, f"{sorted(found)} numbers" + (f"; not planned: {wrong}" if wrong else "")


def _kept(schedule, stages, records) -> tuple[bool, str]:
    from mindglm.plan import verifier

    bounds = [verifier.memory_bound(schedule, rank % stages) for rank in range(len(records))]
    kept = [record[2] for record in records]
    return all(seen <= bound for seen, bound in zip(kept, bounds)), f"{kept} of at most {bounds}, by rank"


def _losses(args, records) -> tuple[bool, str]:
    losses = [record[3] for record in records]
    good = all(each == losses[0] for each in losses) and len(losses[0]) == args.steps
    return good and bool(np.isfinite(losses[0]).all()), ", ".join(f"{loss:.4f}" for loss in losses[0])


def _balance(recipe, args, ranges, stages) -> str:
    flops = unit_flops(recipe, args.height, args.width)
    work = [sum(flops[start:stop]) for start, stop in ranges]
    parameters = sum(int(np.prod(shape)) for shape in _trained(recipe.model.model_config, recipe.model_type).values())
    lines = [f"full size, {args.height}x{args.width} pixels: {parameters:,} parameters, "
             f"{sum(work) / 1e12:.3g} TFLOP forward a sample"]
    for place in range(stages):
        share = sum(work[place::stages]) / sum(work)
        units = ", ".join(f"{start} to {stop - 1}" for start, stop in ranges[place::stages])
        lines.append(f"  stage {place}: units {units}; {share:6.1%} of the work, {share * stages:.2f} of an even share")
    return "\n".join(lines)


def _full_size(recipe, args) -> str:
    micro = recipe.runner_config.global_batch_size // (recipe.parallel_config.data_parallel * recipe.micro_batches)
    elements = micro * message_elements(recipe.model.model_config, recipe.model_type,
                                        *lengths(recipe, args.height, args.width))
    return (f"full-size message between two stages: {elements * 2 / 2**20:.1f} MiB in bfloat16 for a micro-batch of "
            f"{micro} (HCCL_BUFFSIZE should not be less)")


# ---- command line ----


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehearse.sh", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("recipe", metavar="RECIPE")
    add("overrides", nargs="*", default=[], metavar="key=value")
    add("--data-parallel", type=int, choices=[1, 2], default=1, help="pipeline columns to run")
    add("--steps", type=int, default=2, metavar="N")
    add("--micro-batches", type=int, metavar="N", help="default: the recipe's, but at most twice its stages")
    add("--height", type=int, help="of the full-size samples that stages are balanced for, pixels; default: of the "
        "largest of train_dataset.buckets, else 1024")
    add("--width", type=int)
    add("--output", default="output/rehearsal", metavar="DIR", help="made anew")
    add("--prepare", action="store_true", help=argparse.SUPPRESS)  # check, empty the folder, print how many processes
    return parser


def set_size(recipe, args: argparse.Namespace) -> None:
    """Fill in the height and width that were not given."""
    height, width = max(recipe.train_dataset.sizes, key=lambda size: size[0] * size[1], default=(1024, 1024))
    args.height, args.width = args.height or height, args.width or width


def make_anew(folder: pathlib.Path) -> None:
    """An empty folder in place of an earlier rehearsal's. UserError when it holds anything else, say a real run."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UserError(f"--output {folder}: no rehearsal made what is in it, and it would be removed; give a folder "
                        "that does not exist")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)

    def command():
        transport.exit_if_scheduler()
        recipe = recipes.load(args.recipe, args.overrides)
        section = recipe.parallel_config
        if recipe.model_type not in ("ArGenerator", "DiTDecoder") or recipe.trainer.type == "vq_reconstruction":
            raise UserError(f"{args.recipe} trains by {recipe.trainer.type}, which has no pipeline; expected a recipe "
                            "of ar_next_token or flow_matching")
        if section.pipeline_stage < 2:
            raise UserError(f"{args.recipe} has parallel_config.pipeline_stage {section.pipeline_stage}: there is no "
                            "pipeline to rehearse; set it to 2 or more, for instance by pipeline_stage=8 behind it")
        args.micro_batches = args.micro_batches or min(recipe.micro_batches, 2 * section.pipeline_stage)
        set_size(recipe, args)
        if args.prepare:
            make_anew(pathlib.Path(args.output))
            print(section.pipeline_stage * args.data_parallel)
            return
        run(recipe, args)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
