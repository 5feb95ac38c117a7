"""Whole models and objectives compile for Ascend, in bfloat16, into kernels that the wheel has.

One process with the Ascend form of `mindglm.ops` compiles everything (tests/ops/whole_models.py); what these tests
prove and what they do not is in mindglm/ops/ascend.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.ops.kernel_table import FUSED, markdown

ROOT = pathlib.Path(__file__).parents[2]
PASSES = {
    "AR generator: prefill, left padded", "AR generator: decode one code", "AR generator: step ar_next_token",
    "vision tokenizer: encode to codes", "vision tokenizer: step vq_reconstruction",
    "DiT decoder: forward, padded glyphs", "DiT decoder: write a reference", "DiT decoder: forward beside references",
    "DiT decoder: step flow_matching",
    "VAE: encode", "VAE: decode", "VAE: step vae_reconstruction",
    "glyph encoder: forward", "glyph encoder: step glyph_alignment",
}


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """What `whole_models` counted; run outside the repository, where the front end may leave its reports."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "tests.ops.whole_models", "--json"], capture_output=True, text=True,
                          cwd=tmp_path_factory.mktemp("export"), env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_of_every_model_is_in_the_table(counts, capsys):
    with capsys.disabled():
        print("\n" + markdown(counts))
    assert set(counts) == PASSES
    missing = {name: count["missing"] for name, count in counts.items() if count["missing"]}
    assert not missing, f"no Ascend kernel: {missing}"


@pytest.mark.parametrize("name, kernel, number", [
    ("AR generator: prefill, left padded", "FlashAttentionScore", 1),
    ("AR generator: prefill, left padded", "RmsNorm", 4),
    ("AR generator: prefill, left padded", "Swiglu", 1),
    ("AR generator: prefill, left padded", "RotaryPositionEmbedding", 2),
    ("AR generator: step ar_next_token", "FlashAttentionScoreGrad", 1),
    ("vision tokenizer: encode to codes", "FlashAttentionScore", 1),
    ("DiT decoder: forward, padded glyphs", "FlashAttentionScore", 1),
    ("DiT decoder: step flow_matching", "FlashAttentionScoreGrad", 1),
    ("VAE: decode", "Conv2DExt", 2),
])
def test_a_layer_runs_fused(counts, name, kernel, number):
    assert counts[name]["layer"].get(kernel) == number
    assert kernel in FUSED
