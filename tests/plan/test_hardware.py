"""The table of machines: every figure has its source, and measured ones replace it."""

import dataclasses

import pytest

from mindglm.errors import UserError
from mindglm.plan import hardware


@pytest.mark.parametrize("name", hardware.NAMES)
def test_every_figure_says_where_it_comes_from(name):
    machine = hardware.load(name)
    numbers = {field.name for field in dataclasses.fields(machine) if field.type in (int, float)}
    told = [figure for names, source in machine.sources for figure in names.split() if source]
    assert numbers - set(told) - {"devices_per_node"} == set()
    assert set(told) <= numbers
    assert machine.memory > machine.reserved > 0


def test_public_figures():
    """Of the issue: 910B and 910C of 64 GB a device, 910C about 800 TFLOPS a module of two, RoCE 200G, HCCS."""
    a2, a3 = hardware.load("atlas800t-a2"), hardware.load("atlas900-a3")
    assert (a2.devices_per_node, a2.memory, a2.network_bandwidth * 8) == (8, 64 * 2**30, 200e9)
    assert 8 * a2.peak_flops == pytest.approx(2.504e15, rel=1e-3) and a2.node_bandwidth == 7 * a2.pair_bandwidth
    assert (a3.devices_per_node, 2 * a3.peak_flops) == (16, 752e12)


def test_measured_figures_replace_the_table(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text("base: atlas800t-a2\nmatmul_efficiency: 0.5\nnetwork_bandwidth: 20000000000\n")
    machine, table = hardware.load(str(file)), hardware.load("atlas800t-a2")
    assert (machine.matmul_efficiency, machine.network_bandwidth) == (0.5, 2e10)
    assert machine.peak_flops == table.peak_flops
    assert machine.sources[0] == ("matmul_efficiency network_bandwidth", f"measured: {file}")


def test_numbers_as_recipes_write_them(tmp_path):
    """YAML 1.1 takes the first two for text."""
    file = tmp_path / "ours.yaml"
    file.write_text("base: h100\nstorage_bandwidth: 3e9\npeak_flops: 354.0e12\nmatmul_efficiency: 1\n"
                    "devices_per_node: 16.0\n")
    machine = hardware.load(str(file))
    assert (machine.storage_bandwidth, machine.peak_flops, machine.matmul_efficiency) == (3e9, 354e12, 1)
    assert machine.devices_per_node == 16 and type(machine.devices_per_node) is int


@pytest.mark.parametrize("text, words", [
    ("base: a100\n", "base"), ("matmul_efficiency: 0.5\n", "base"), ("[1]\n", "base"), ("base: [\n", "cannot be read"),
    ("base: h100\nspeed: 3\npeak_flops: fast\nmemory: -1\n",
     "speed is no figure.*\n.*'fast', expected a finite number.*\n.*-1"),
    *((f"base: h100\npeak_flops: {value}\n", "expected a finite number above 0")
      for value in (".inf", ".nan", "nan", "1e999", "1" + 400 * "0", "true", "null", "[1]", "0")),
    ("base: h100\nmatmul_efficiency: 1.01\n", "1.01, expected a share above 0 and at most 1"),
    *((f"base: h100\ndevices_per_node: {value}\n", "expected a whole number of at least 1") for value in (8.5, 0, -2))])
def test_what_is_no_figure_is_refused(tmp_path, text, words):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        hardware.load(str(file))


def test_unknown_machines():
    with pytest.raises(UserError, match="expected one of atlas800t-a2"):
        hardware.load("a100")
    with pytest.raises(UserError, match="cannot be read"):
        hardware.load("nowhere.yaml")
