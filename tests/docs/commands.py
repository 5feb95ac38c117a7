"""The commands in docs/en (those of docs/zh are the same: tests/docs/test_docs.py)."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[tuple[str, str]]:
    """(bash or console, command line) of every command of a page, in its order."""
    blocks = BLOCK.findall((ROOT / "docs" / "en" / page).read_text())
    blocks = [(kind, block) for kind, block in blocks if kind in ("bash", "console")]
    return [(kind, line) for kind, block in blocks for line in block.splitlines() if line]
