"""The tools need NumPy alone, and no more memory for a large file than for a small one."""

import pathlib
import subprocess
import sys

import numpy as np

from mindglm.checkpoint.tensors import write_tensors
from tests.golden import REPO

ROOT = pathlib.Path(__file__).resolve().parents[2]

ONLY_NUMPY = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        root = name.partition(".")[0]
        if root not in {"numpy", "safetensors", "mindglm", "ckpt_tools"} and root not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"not here: {name}", name=root)
sys.meta_path.insert(0, Refuse())
from ckpt_tools import convert, diff, inspect, verify
repo, out, glm4 = sys.argv[1:]
hf, back = ["--from", "hf", "--to", "mindglm"], ["--from", "mindglm", "--to", "hf"]
codes = [convert.main([*hf, repo, out + "/m"]), convert.main([*back, out + "/m", out + "/h"]),
         diff.main([repo, out + "/h"]), verify.main([out + "/m"]), inspect.main([out + "/m", "--fold"]),
         convert.main(["--from", "glm4", "--to", "hf", glm4 + "/checkpoint", out + "/g", "--config",
                       glm4 + "/ar_config.json"])]
assert codes == [0] * 6, codes
"""

PEAK = """
import resource, sys
from mindglm.checkpoint import conversion
from mindglm.checkpoint.tensors import write_tensors, TensorFile
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
conversion.convert(sys.argv[1], sys.argv[2] + "/small", "mindglm")
before = peak()
file = TensorFile(sys.argv[3])
write_tensors(sys.argv[2] + "/same", {name: file.stream(name) for name in file.names})
write_tensors(sys.argv[2] + "/wide", {name: file.stream(name, "F32") for name in file.names})
print(peak() - before)
"""


def test_numpy_is_enough(tmp_path):
    """In a process that can import only NumPy, safetensors and the standard library: no tqdm, yaml, MindSpore."""
    glm4 = ROOT / "tests" / "golden" / "glm4"
    result = subprocess.run([sys.executable, "-c", ONLY_NUMPY, str(REPO), str(tmp_path), str(glm4)], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "of 0.00 GB" in result.stderr  # the progress lines that stand in for tqdm's bar


def test_memory_does_not_grow_with_the_tensor(tmp_path):
    """One tensor of 256 MB is copied and cast to 512 MB within 120 MB."""
    write_tensors(tmp_path / "big.safetensors", {"w": np.zeros((2**14, 2**13), np.uint16)})
    result = subprocess.run([sys.executable, "-c", PEAK, str(REPO), str(tmp_path), str(tmp_path / "big.safetensors")],
                            cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 120e6
