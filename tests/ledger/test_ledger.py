"""The hash chain of a ledger, digests that add up over ranks, and the audit of two runs."""

import json

import numpy as np
import pytest

from mindglm import ledger, order
from mindglm.cli.main import main
from mindglm.errors import UserError
from mindglm.ledger import audit, chain

HEX = "0" * 24


def lines(steps=6, weights_every=2, **changes):
    """Bodies of a made-up run. changes: {field__step: value}."""
    found = []
    for step in range(1, steps + 1):
        body = {"step": step, "data": f"{step:024x}", "draws": f"{step + 100:024x}", "loss": 1 / step,
                "grad_norm": 0.5 + step, "lr": 0.1}
        if step % weights_every == 0:
            body["weights"] = f"{step + 200:024x}"
        body.update({key.split("__")[0]: value for key, value in changes.items() if key.endswith(f"__{step}")})
        found.append(body)
    return found


def write(path, bodies, saved=None, **first):
    opened = chain.Chain(path, saved, {"seed": 0, **first})
    for body in bodies:
        opened.append(body)
    opened.close()
    return path


def test_ledger_reads_back_and_numbers_keep_their_bits(tmp_path):
    bodies = lines(loss__3=float("nan"), grad_norm__3=float("inf"), loss__4=0.1 + 0.2)
    path = write(tmp_path / "ledger.jsonl", bodies)
    first, *found = ledger.read(path)
    assert first == {"ledger": 1, "seed": 0}
    assert found[2]["loss"] == "nan" and found[2]["grad_norm"] == "inf" and found[3]["loss"] == 0.1 + 0.2
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]


def altered(text, number, how):
    rows = text.splitlines(keepends=True)
    if how == "number":
        rows[number] = rows[number].replace('"grad_norm": 2.5', '"grad_norm": 2.6')
    elif how == "gone":
        del rows[number]
    elif how == "twice":
        rows.insert(number, rows[number])
    elif how == "swapped":
        rows[number], rows[number + 1] = rows[number + 1], rows[number]
    else:
        rows[number] = "not json\n"
    return "".join(rows)


@pytest.mark.parametrize("how, line", [("number", 3), ("gone", 3), ("twice", 4), ("swapped", 3), ("noise", 3)])
def test_altered_ledger_is_refused_with_its_line(tmp_path, how, line):
    path = write(tmp_path / "ledger.jsonl", lines())
    path.write_text(altered(path.read_text(), 2, how))
    with pytest.raises(UserError, match=f"ledger.jsonl:{line}: "):
        ledger.read(path)


def test_line_cut_by_a_kill_is_left_out(tmp_path):
    path = write(tmp_path / "ledger.jsonl", lines())
    path.write_bytes(path.read_bytes()[:-10])
    assert [line.get("step") for line in ledger.read(path)] == [None, 1, 2, 3, 4, 5]


def test_resumed_ledger_is_that_of_the_checkpoint_and_goes_on_as_if_nothing_had_been(tmp_path):
    """Dropped after step 5 with the checkpoint of step 3: the end is the file of the straight run, byte for byte."""
    straight = write(tmp_path / "straight.jsonl", lines())
    path = tmp_path / "ledger.jsonl"
    first = chain.Chain(path, None, {"seed": 0})
    for body in lines()[:3]:
        first.append(body)
    saved = first.content
    for body in lines()[3:5]:
        first.append(body)
    second = chain.Chain(path, saved, {"seed": 0})
    assert sorted(second.expected) == [4, 5] and second.expected[4]["data"] == lines()[3]["data"]
    assert path.read_bytes() == saved and second.note == ""
    for body in lines()[3:]:
        second.append(body)
    assert path.read_bytes() == straight.read_bytes()


def test_altered_file_gives_way_to_the_ledger_of_the_checkpoint(tmp_path):
    path = write(tmp_path / "ledger.jsonl", lines())
    saved = path.read_bytes()
    path.write_text(altered(path.read_text(), 2, "number"))
    opened = chain.Chain(path, saved, {})
    assert "ledger.jsonl:3" in opened.note and path.read_bytes() == saved
    write(tmp_path / "other.jsonl", lines(data__2=HEX))
    assert "ledger of another run" in chain.Chain(tmp_path / "other.jsonl", saved, {}).note
    with pytest.raises(UserError, match="of the checkpoint:3"):
        chain.Chain(path, altered(saved.decode(), 2, "number").encode(), {})


def test_full_disk_loses_no_line(tmp_path):
    """/dev/full takes nothing: the lines wait, and are part of what a checkpoint gets."""
    opened = chain.Chain(tmp_path / "ledger.jsonl", None, {"seed": 0})
    real, opened._file._file = opened._file._file, open("/dev/full", "ab", buffering=0)
    opened.append(lines()[0])
    assert opened.error.errno == 28
    opened._file._file = real
    opened.append(lines()[1])
    assert opened.error is None
    assert [line.get("step") for line in ledger.read(tmp_path / "ledger.jsonl")] == [None, 1, 2]
    assert opened.content == (tmp_path / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("what", ["gone", "flipped"])
def test_file_that_is_lost_or_altered_meanwhile_does_not_reach_the_checkpoint(tmp_path, what):
    """What a checkpoint gets is what the run has written, whatever became of the file."""
    straight = write(tmp_path / "straight.jsonl", lines()).read_bytes()
    path = tmp_path / "ledger.jsonl"
    opened = chain.Chain(path, b"".join(straight.splitlines(keepends=True)[:3]), {})
    for body in lines()[2:4]:
        opened.append(body)
    path.unlink() if what == "gone" else path.write_text(altered(path.read_text(), 2, "number"))
    for body in lines()[4:]:
        opened.append(body)
    assert opened.content == straight


def watched(places, keys, seed=3, spend=1):
    """The witness of a rank that made these places of a global batch."""
    witness = ledger.Witness()
    for place, key in zip(places, keys):
        witness.sample(place, key, {"id": str(key), "pixels": np.full((2, 2), key, np.uint8)})
        generator = witness.drew(place, "noise", order.rng(seed, 7, key, "noise"))
        generator.standard_normal(spend)
    return witness


def summed(*digests):
    return ledger.Digest(sum(digest.limbs for digest in digests)).hex


def test_ranks_digests_add_up_to_that_of_the_batch():
    keys = [5, 3, 9, 5]
    whole = watched(range(4), keys)
    parts = [watched([2, 3], keys[2:]), watched([1, 0], [3, 5])]  # in any order
    assert summed(*(part.data for part in parts)) == whole.data.hex
    assert summed(*(part.draws for part in parts)) == whole.draws.hex


def test_digests_see_places_samples_bytes_seeds_and_how_much_was_drawn():
    base = watched(range(3), [1, 2, 3])
    assert watched(range(3), [2, 1, 3]).data != base.data
    assert watched(range(3), [1, 2, 4]).data != base.data
    assert watched(range(3), [1, 2, 3], seed=4).data == base.data
    assert watched(range(3), [1, 2, 3], seed=4).draws != base.draws
    assert watched(range(3), [1, 2, 3], spend=9).draws != base.draws
    first, second = ledger.Digest(), ledger.Digest()
    first.add("a", np.zeros(4, np.float32))
    second.add("a", np.zeros((2, 2), np.float32))
    assert first != second and len(first.hex) == 24


@pytest.mark.parametrize("change, cause", [
    ({"data__4": HEX}, "data"), ({"data__4": HEX, "draws__4": HEX, "loss__4": 9.0}, "data"),
    ({"draws__4": HEX}, "RNG"), ({"draws__4": HEX, "loss__4": 9.0}, "RNG"),
    ({"loss__4": 0.2501}, "numerics"), ({"lr__4": 0.2}, "numerics"), ({"loss__4": float("nan")}, "numerics"),
])
def test_audit_names_the_first_step_and_the_cause(tmp_path, capsys, change, cause):
    a = write(tmp_path / "a" / "ledger.jsonl", lines())
    b = write(tmp_path / "b" / "ledger.jsonl", lines(**change, loss__6=7.0))
    found = audit.compare(ledger.read(a), ledger.read(b))
    assert (found.parted, found.cause) == (4, cause)
    assert main(["audit", str(tmp_path / "a"), str(b)]) == 1
    assert f"the runs part at step 4: {cause} first" in capsys.readouterr().out


def test_audit_of_the_same_run_and_of_rounding(tmp_path, capsys):
    a = write(tmp_path / "a" / "ledger.jsonl", lines())
    rounded = write(tmp_path / "b" / "ledger.jsonl", lines(loss__3=1 / 3 * (1 + 1e-7), weights__4=HEX))
    assert main(["audit", str(a), str(tmp_path / "a")]) == 0
    assert "the same run: 6 steps" in capsys.readouterr().out
    assert main(["audit", str(a), str(rounded)]) == 0
    text = capsys.readouterr().out
    assert "rounding from step 3 on (largest relative difference 1e-07)" in text
    assert main(["audit", str(a), str(rounded), "--tolerance", "0"]) == 1
    assert "part at step 3: numerics first" in capsys.readouterr().out
    weights = write(tmp_path / "c" / "ledger.jsonl", lines(weights__4=HEX))
    assert audit.compare(ledger.read(a), ledger.read(weights), 0).parted == 4
    assert audit.compare(ledger.read(a), ledger.read(weights)).rounded_from == 4


def test_audit_says_what_else_differs(tmp_path, capsys):
    a = write(tmp_path / "a" / "ledger.jsonl", lines(), seed=0)
    changed = {"step": 2, "recipe": ["optimizer.eps: 1e-08 -> 1e-06"]}
    bodies = lines(8, loss__4=0.9)
    b = write(tmp_path / "b" / "ledger.jsonl", [*bodies[:2], changed, *bodies[2:]], seed=1)
    assert main(["audit", str(a), str(b)]) == 1
    text = capsys.readouterr().out
    assert "the runs began with seed 0 and 1" in text
    assert "B was resumed after step 2 with another recipe: optimizer.eps: 1e-08 -> 1e-06" in text
    assert "A has steps 1 to 6, B steps 1 to 8" in text and "part at step 4" in text


def test_audit_of_one_run_checks_its_chain(tmp_path, capsys):
    path = write(tmp_path / "ledger.jsonl", lines())
    assert main(["audit", str(tmp_path)]) == 0
    assert "7 lines, the hash chain is whole, steps 1 to 6" in capsys.readouterr().out
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rows[:2], json.dumps({"step": 9}) + "\n", *rows[2:]]))
    assert main(["audit", str(tmp_path)]) == 2
    assert "ledger.jsonl:3: not a line of a ledger" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["nan", "-1", "1", "few"])
def test_audit_refuses_a_tolerance_that_is_none(tmp_path, tolerance):
    a = write(tmp_path / "ledger.jsonl", lines())
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(a), str(a), f"--tolerance={tolerance}"])
    assert ended.value.code == 2


@pytest.mark.parametrize("gone, value", [("draws", None), ("step", "3"), ("loss", "much"), ("lr", None)])
def test_audit_refuses_lines_that_no_run_writes(tmp_path, capsys, gone, value):
    """Their chain is whole: somebody made it so."""
    bodies = lines()
    bodies[2] = {key: item for key, item in bodies[2].items() if key != gone} | ({gone: value} if value else {})
    a = write(tmp_path / "ledger.jsonl", bodies)
    assert main(["audit", str(a), str(a)]) == 2
    assert "line 4 of a ledger" in capsys.readouterr().err


def test_audit_refuses_what_is_no_run(tmp_path, capsys):
    assert main(["audit", str(tmp_path), str(tmp_path)]) == 2
    assert "no ledger here" in capsys.readouterr().err
    a = write(tmp_path / "a.jsonl", lines(2))
    b = write(tmp_path / "b.jsonl", lines(4)[2:])
    assert main(["audit", str(a), str(b)]) == 2
    assert "no step in common: steps 1 to 2 and steps 3 to 4" in capsys.readouterr().err
