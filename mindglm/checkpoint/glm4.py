"""A GLM-4-9B-0414 folder -> the language half of an AR generator (reference section 5.1), as GLM-Image was started.

Image rows of the embedding and lm_head are drawn from the seed, exactly as a run of that seed would draw them. Vision
tower, VQ and all other components come from a released-layout folder, if one is given.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from mindglm.checkpoint import conversion, matching
from mindglm.checkpoint.components import COMPONENTS, RELEASED
from mindglm.checkpoint.released import config_text, read_json
from mindglm.checkpoint.scan import ModelFolder, scan, weight_files
from mindglm.checkpoint.tensors import Stream, TensorFile, cast
from mindglm.checkpoint.writer import FolderWriter, check_apart, check_target, quiet
from mindglm.errors import UserError
from mindglm.models.ar_generator import glm4_names
from mindglm.models.ar_generator.hf_names import COMPONENT, language_tensors
from mindglm.models.names import Pair, ShiftedRows
from mindglm.order import initial_values

_DRAWN_AT_ONCE = 1 << 22


def convert(source: str | os.PathLike, target: str | os.PathLike, to: str, base: str | os.PathLike | None = None,
            config: str | os.PathLike | None = None, seed: int = 0, dtype: str | None = None, overwrite: bool = False,
            progress=quiet) -> pathlib.Path:
    """Writes the model folder that an AR run starts from; returns `target`.

    to: "mindglm" (sealed) | "hf". base: released-layout folder that gives the structure, tower, VQ and the other
    components. config: config.json of an AR generator, when there is no base. Without either: the released structure.
    dtype: of the AR generator; None keeps that of the GLM-4 folder. Raises UserError when the two do not fit.
    """
    source = pathlib.Path(source)
    check_apart(source, target)
    check_target(pathlib.Path(target), overwrite)
    if base is not None and config is not None:
        raise UserError("--base gives the structure as well: give --base or --config, not both")
    rest = None
    if base is not None:
        check_apart(base, target)
        rest = scan(base)
    json_text, structure = _structure(rest, config)
    vocab = glm4_names.check_config(read_json(source / "config.json"), structure, str(source / "config.json"))
    files, pairs = _their_files(source, structure, vocab)
    code = _code(dtype, files[glm4_names.name_map(structure, vocab)[0].theirs])
    name = next(name for name, known in conversion.CODES.items() if known == code)
    std = json.loads(json_text).get("text_config", {}).get("initializer_range", 0.02)
    streams = _language(structure, pairs, files, code, seed, std)
    streams.update(_tokenizer(rest, structure, code))
    total = sum(stream.nbytes for stream in streams.values()) + (rest.total_bytes if rest else 0)
    with progress(total) as on_bytes, FolderWriter(target, total, overwrite, on_bytes) as writer:
        if rest is not None:
            writer.copy_rest(rest, COMPONENT)
        writer.write_component(COMPONENT, conversion.config_with_dtype(json_text, code), streams, name)
        return writer.finish(sealed=to == "mindglm")


def _structure(rest: ModelFolder | None, config) -> tuple[str, object]:
    """(text of config.json, structure) of the AR generator to be made."""
    path = RELEASED / COMPONENT / "config.json" if config is None else pathlib.Path(config)
    if rest is not None:
        if rest.component(COMPONENT) is None:
            raise UserError(f"{rest.root}: holds no {COMPONENT}; --base needs one for the structure, tower and VQ")
        path = rest.root / COMPONENT / "config.json"
    content = read_json(path)
    kind = COMPONENTS[COMPONENT]
    text = config_text(content) if rest is None else path.read_text(encoding="utf-8")
    return text, kind.config.from_hf(content)


def _their_files(source: pathlib.Path, structure, vocab: int) -> tuple[dict[str, TensorFile], list[Pair]]:
    """({their tensor name: open file}, name map), every name checked."""
    opened, _, problems = weight_files(source, "model")
    pairs = glm4_names.name_map(structure, vocab)
    header = {name: (file.dtype(name), file.shape(name)) for file in opened.values() for name in file.names}
    wanted = {pair.theirs: pair.their_shape for pair in pairs}
    matching.refuse({str(source): problems + matching.faults(wanted, header, glm4_names.UNUSED)},
                    "Give the folder of a GLM-4-9B-0414 checkpoint (Glm4ForCausalLM, safetensors).")
    return {name: file for file in opened.values() for name in file.names}, pairs


def _code(dtype: str | None, embedding: TensorFile) -> str:
    if dtype is None:
        return embedding.dtype(f"{glm4_names.THEIRS}embed_tokens.weight")
    return conversion.CODES[COMPONENTS[COMPONENT].dtype if dtype == "released" else dtype]


def _language(structure, pairs: list[Pair], files: Mapping[str, TensorFile], code: str, seed: int,
              std: float) -> dict[str, Stream]:
    """The decoder's tensors: copied, permuted or shifted; what GLM-4 has nothing for is drawn."""
    by_name = {pair.ours: pair for pair in pairs}
    streams = {}
    for name, shape in language_tensors(structure).items():
        pair = by_name.get(name)
        if pair is None:
            streams[name] = Stream(code, shape, lambda name=name, shape=shape: (
                cast(piece, code) for piece in _draw(initial_values(seed, name), int(np.prod(shape)), std)))
        elif isinstance(pair.rows, ShiftedRows):
            streams[name] = _shifted(pair, files[pair.theirs], code, seed, std)
        else:
            streams[name] = conversion.converted(pair, files[pair.theirs], "mindglm", code)[1]
    return streams


def _shifted(pair: Pair, file: TensorFile, code: str, seed: int, std: float) -> Stream:
    """Drawn rows, their rows, and drawn rows again where ours has more."""
    rows, width = pair.shape
    behind = rows - pair.rows.start - pair.rows.count

    def pieces() -> Iterator[np.ndarray]:
        generator = initial_values(seed, pair.ours)
        yield from _draw(generator, pair.rows.start * width, std)
        yield from file.pieces(pair.theirs)
        yield from _draw(generator, behind * width, std)

    return Stream(code, pair.shape, lambda: (cast(piece, code) for piece in pieces()))


def _draw(generator: np.random.Generator, count: int, std: float) -> Iterator[np.ndarray]:
    """`count` normal values float32 with standard deviation std, some megabytes at a time."""
    while count:
        size = min(count, _DRAWN_AT_ONCE)
        yield generator.standard_normal(size, dtype=np.float32) * np.float32(std)
        count = count - size


def _tokenizer(rest: ModelFolder | None, structure, code: str) -> dict[str, Stream]:
    """Tower and VQ of the base, checked name by name; {} without a base."""
    if rest is None:
        return {}
    component = rest.component(COMPONENT)
    tensors = COMPONENTS[COMPONENT].names.tokenizer_tensors(structure)
    header = component.header()
    language = language_tensors(structure)
    faults = component.problems + matching.faults(tensors, header, language)
    matching.refuse({str(rest.root / COMPONENT): faults}, "--base needs tower and VQ as its config.json says.")
    where = {name: file for file in component.files.values() for name in file.names}
    return {name: where[name].stream(name, code) for name in tensors}
