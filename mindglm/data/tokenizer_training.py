"""A byte-level BPE tokenizer in the released layout, trained on captions: for models of our own size.

    python -m mindglm.data.tokenizer_training --captions FILE --output DIR \\
        --codes 256 --vision-vocab 272 --vocab-size 1296

Id layout (reference section 2.1): `<|dit_token_k|>` = k for k < vision_vocab (codes, image start, image end, spare),
then text tokens, then the 16 GLM-4 control tokens. Writes DIR/processor/ and DIR/tokenizer/
(the glyph encoder's bytes).
"""

import argparse
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mindglm.data.drawing import write_bytes, write_json
from mindglm.errors import UserError, exit_code

CONTROL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>",
    "<|video|>",
)
BYTES = 256


def train_tokenizer(captions: list[str], vision_vocab: int, vocab_size: int) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` ids. Raises UserError when the captions are too few for that many."""
    wanted = vocab_size - vision_vocab - len(CONTROL_TOKENS)
    if wanted < BYTES:
        raise UserError(f"vocab-size {vocab_size}: expected at least {vision_vocab + BYTES + len(CONTROL_TOKENS)} = "
                        f"{vision_vocab} image ids + {BYTES} bytes + {len(CONTROL_TOKENS)} control tokens")
    learner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=wanted, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False)
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    if len(learned["vocab"]) != wanted:
        found = len(learned["vocab"])
        raise UserError(f"the captions give only {found} text tokens, {wanted} were asked for; give more captions or "
                        f"--vocab-size {vocab_size - wanted + found}")
    image_tokens = [f"<|dit_token_{k}|>" for k in range(vision_vocab)]
    text = sorted(learned["vocab"], key=learned["vocab"].get)
    vocab = {token: i for i, token in enumerate([*image_tokens, *text, *CONTROL_TOKENS])}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in learned["merges"]]
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token in (*CONTROL_TOKENS, *image_tokens)])
    return tokenizer


def write_processor(folder: Path, tokenizer: Tokenizer, codes: int, shortest_side: int = 32) -> None:
    """The four files of `processor/`. codes: image codes; image start and end are the next two ids."""
    start, end = f"<|dit_token_{codes}|>", f"<|dit_token_{codes + 1}|>"
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode())
    write_json(folder / "tokenizer_config.json", {
        "backend": "tokenizers", "bos_token": start, "eos_token": end, "extra_special_tokens": [],
        "grid_bos_token": "<sop>", "grid_eos_token": "<eop>", "image_token": "<|image|>", "model_max_length": 65536,
        "pad_token": end, "padding_side": "left", "processor_class": "GlmImageProcessor",
        "tokenizer_class": "TokenizersBackend"}, indent=2)
    write_json(folder / "preprocessor_config.json", {
        "min_pixels": shortest_side**2, "max_pixels": 2048**2,
        "do_rescale": True, "do_normalize": True, "do_resize": True, "patch_size": 16,
        "temporal_patch_size": 1, "merge_size": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "GlmImageImageProcessor", "processor_class": "GlmImageProcessor", "resample": 3,
        "rescale_factor": 1 / 255}, indent=2)
    write_bytes(folder / "chat_template.jinja", _chat_template(start, end).encode())


def write_glyph_tokenizer(folder: Path) -> None:
    """The two files of `tokenizer/`: transformers' ByT5Tokenizer, which has no vocabulary file."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {f"<extra_id_{k}>": 259 + k for k in range(125)}
    decoder = {str(i): _added(token, strip=True, special=False) for i, token in enumerate(("<pad>", "</s>", "<unk>"))}
    decoder.update({str(i): _added(token, strip=False, special=True) for token, i in extra.items()})
    write_json(folder / "added_tokens.json", dict(sorted(extra.items())), indent=2)
    write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": decoder, "backend": "custom", "eos_token": "</s>", "extra_ids": 0,
        "extra_special_tokens": list(extra), "model_max_length": int(1e30), "pad_token": "<pad>",
        "tokenizer_class": "ByT5Tokenizer", "unk_token": "<unk>"})


def run(captions: Path, output: Path, codes: int, vision_vocab: int, vocab_size: int,
        shortest_side: int = 32) -> Tokenizer:
    """Train on the training captions of a captions.jsonl and write `processor/` and `tokenizer/` into `output`."""
    if vision_vocab < codes + 2:
        raise UserError(f"vision-vocab {vision_vocab}: expected at least {codes + 2} = {codes} codes + image start and "
                        "end")
    tokenizer = train_tokenizer(training_captions(Path(captions)), vision_vocab, vocab_size)
    write_processor(Path(output) / "processor", tokenizer, codes, shortest_side)
    write_glyph_tokenizer(Path(output) / "tokenizer")
    return tokenizer


def training_captions(path: Path) -> list[str]:
    """Captions of a JSONL file but for the held-out ones. Raises UserError."""
    if not path.is_file():
        raise UserError(f'captions: {path} is not a file; expected JSONL with {{"caption": ...}} a line')
    captions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if row.get("split") != "held_out":
                captions.append(row["caption"])
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f'captions: {path}:{number}: expected a JSON object with "caption" ({error!r})') from error
    return captions


def _byte_level(model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _added(token: str, strip: bool, special: bool) -> dict:
    return {"content": token, "lstrip": strip, "normalized": not special, "rstrip": strip, "single_word": False,
            "special": special}


def _chat_template(start: str, end: str) -> str:
    return "\n".join((
        "{%- for m in messages -%}", "{%- if m.content is string -%}", "{{ m.content }}", "{%- else -%}",
        "{%- for item in m.content -%}", "{%- if item.type == 'image' or item.get('image') is not none -%}",
        f"{start}<|image|>{end}", "{%- elif item.type == 'text' -%}", "{{ item.text }}", "{%- endif -%}",
        "{%- endfor -%}", "{%- endif -%}", "{%- endfor -%}"))


def main(argv=None) -> int:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m mindglm.data.tokenizer_training", description=summary)
    parser.add_argument("--captions", type=Path, required=True, help="captions.jsonl; held-out lines are left out")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write the two folders into")
    parser.add_argument("--codes", type=int, required=True, help="image codes (num_embeddings of the VQ)")
    parser.add_argument("--vision-vocab", type=int, required=True, help="ids of the head: codes, start, end, spare")
    parser.add_argument("--vocab-size", type=int, required=True, help="all ids")
    parser.add_argument("--shortest-side", type=int, default=32, help="smaller source images are scaled up to it")
    args = parser.parse_args(argv)

    def command():
        tokenizer = run(args.captions, args.output, args.codes, args.vision_vocab, args.vocab_size, args.shortest_side)
        print(f"{tokenizer.get_vocab_size()} ids in {args.output}/processor/tokenizer.json")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
