"""The ledger of a run: JSON lines, each with a hash of itself and of the line before it.

    {"ledger": 1, "seed": 0, "global_batch_size": 16, "chain": "..."}                              the first line
    {"step": 1, "data": "...", "draws": "...", "loss": 3.1, "grad_norm": 0.7, "lr": 1e-05, "chain": "..."}
    {"step": 100, ..., "weights": "...", "chain": "..."}            every monitor_config.weights_hash_interval steps
    {"step": 100, "recipe": ["optimizer.eps: 1e-08 -> 1e-06"], "chain": "..."}      resumed at step 100, recipe changed

Nothing in it depends on the layout of the run or on the clock: two runs that did the same have the same file. Numbers
are written so that they read back as the same float64; one that is not finite is a text ("nan", "inf").
"""

import hashlib
import json
import math
import os
import pathlib

from mindglm.errors import UserError

NAME = "ledger.jsonl"
VERSION = 1


def sealed(body: dict, before: str) -> tuple[str, str]:
    """(the line with its newline, its hash). before: the hash of the line before, "" for the first."""
    plain = {key: _plain(value) for key, value in body.items()}
    chain = _hash(plain, before)
    return json.dumps({**plain, "chain": chain}, allow_nan=False) + "\n", chain


def _hash(body: dict, before: str) -> str:
    text = before + json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def parse(text: str, name: str) -> list[dict]:
    """The lines of a ledger, the first one included. UserError when a line was altered, lost or put in between.

    name: of the file, for messages. A last line without its end (the run was killed while it wrote) is left out.
    """
    found, before = [], ""
    complete = text[:text.rfind("\n") + 1]
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            body = json.loads(line)
            chain = body.pop("chain")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{name}:{number}: not a line of a ledger ({line[:60]!r}); it was altered") from error
        if chain != _hash(body, before):
            raise UserError(f"{name}:{number}: the hash chain breaks here: this line was altered, or one before it is "
                            "missing; take the ledger of the newest checkpoint")
        before = chain
        found.append(body)
    if found and found[0].get("ledger") != VERSION:
        raise UserError(f"{name}: ledger version {found[0].get('ledger')}, expected {VERSION}")
    return found


def read(path: str | os.PathLike) -> list[dict]:
    """`parse` of a file. UserError when there is none."""
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a ledger ({error})") from error
    return parse(text, str(path))


class Appender:
    """A file that lines are added to. A disk that is full loses none of them: they are kept and tried again."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "ab", buffering=0)
        self._waiting = b""
        self.error: OSError | None = None
        """Why the last write did not succeed; None: it did."""

    def write(self, text: str) -> None:
        self._waiting = self._waiting + text.encode()
        self.error = None
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting):]
        except OSError as error:
            self.error = error

    def close(self) -> None:
        self.write("")
        self._file.close()


class Chain:
    """The ledger of a run under way."""

    def __init__(self, path: pathlib.Path, saved: bytes | None, first: dict):
        """saved: the ledger up to the checkpoint that the run goes on from; None: a new one begins with `first`.

        What the file holds beyond `saved` belongs to steps that will be done again; `expected` keeps those lines.
        `note` says when the file was altered and the saved one takes its place. UserError when `saved` itself was.
        """
        self.path = path
        saved = saved or b""
        lines = parse(saved.decode(errors="replace"), f"{path.name} of the checkpoint")
        self._content = bytearray(saved[:saved.rfind(b"\n") + 1])
        self.expected, self.note = _beyond(path, lines)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            staging.write_bytes(self._content)
            os.replace(staging, path)
        except OSError:
            staging.unlink(missing_ok=True)
            raise
        self._head = json.loads(self._content.splitlines()[-1])["chain"] if lines else ""
        self._file = Appender(path)
        if not lines:
            self.append({"ledger": VERSION, **first})

    def append(self, body: dict) -> None:
        text, self._head = sealed(body, self._head)
        self._content.extend(text.encode())
        self._file.write(text)

    @property
    def error(self) -> OSError | None:
        return self._file.error

    @property
    def content(self) -> bytes:
        """All lines so far. Kept in memory, some 250 bytes a step: the file may be altered or lost meanwhile,
        and a checkpoint must not take that over."""
        return bytes(self._content)

    def close(self) -> None:
        self._file.close()


def _beyond(path: pathlib.Path, lines: list[dict]) -> tuple[dict[int, dict], str]:
    """{step: line} of the steps that a ledger file has besides `lines`, with which it begins; and what to say of it."""
    if not path.exists() or not lines:
        return {}, ""
    try:
        there = read(path)
    except UserError as error:
        return {}, f"{error}; replaced by the one that the checkpoint holds"
    if there[:len(lines)] != lines:
        return {}, f"{path} is the ledger of another run; replaced by the one that the checkpoint holds"
    return {line["step"]: line for line in there[len(lines):] if "data" in line}, ""
