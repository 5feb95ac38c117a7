"""The documentation says what is there: both languages in step, commands that parse, a reference of this schema."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from mindglm import recipe
from mindglm.cli.main import build_parser
from mindglm.diagnose import causes
from tests.docs.commands import BLOCK, ROOT, commands

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in (DOCS / "en").glob("*.md"))


def text(language: str, page: str) -> str:
    return (DOCS / language / page).read_text()


def test_both_languages_have_the_same_pages():
    assert PAGES == sorted(path.name for path in (DOCS / "zh").glob("*.md")) and len(PAGES) == 6


@pytest.mark.parametrize("page", PAGES)
def test_the_languages_are_in_step(page):
    """The same headings (levels, and words in backticks), the same blocks, letter for letter, and the same links."""
    shapes = []
    for language in ("en", "zh"):
        whole = text(language, page)
        prose = BLOCK.sub("", whole)
        headings = [(len(level), re.findall(r"`[^`]+`", title)) for level, title in
                    re.findall(r"^(#+) (.+)$", prose, re.MULTILINE)]
        links = re.findall(r"\]\(([^)]+)\)", prose) if page != "README.md" else []  # it names the other language
        shapes.append((headings, BLOCK.findall(whole), links))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("page", PAGES)
def test_paragraphs_are_not_left_untranslated(page):
    """Every paragraph and every row of a table of a Chinese page has Chinese words (a row: unless it is all names)."""
    for part in re.split(r"\n\s*\n", BLOCK.sub("", text("zh", page)).strip()):
        names_only = re.fullmatch(r"#+ `\w+`|#+ [\w.]+( \(\w+\))?|", part.strip())
        assert re.search(r"[\u4e00-\u9fff]", part) or names_only, part


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(language, page):
    whole = text(language, page)
    for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", whole)):
        assert (DOCS / language / target).exists(), target
    for named in re.findall(r"`((?:tests|launch|recipes|mindglm|docs)/[\w/.]*)`", whole):
        assert (ROOT / named).exists(), named


def test_the_reference_is_that_of_the_schema():
    """`python docs/recipe_reference.py` writes it anew; a key without a Chinese text is an error there."""
    spec = importlib.util.spec_from_file_location("recipe_reference", DOCS / "recipe_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, expected in module.pages().items():
        assert path.read_text() == expected, f"{path} is stale: python docs/recipe_reference.py"
    chinese = text("zh", "recipe_reference.md")
    assert not re.search(r"\b(at least|at most|integer|a list|each|a number|null or)\b", chinese)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_cause_of_triage_has_an_entry(language):
    """Symptom, cause, fix, check: four lines each."""
    entries = dict(re.findall(r"^### `(\w+)`\n\n((?:.+\n)+)", text(language, "troubleshooting.md"), re.MULTILINE))
    behind = {"scheduler_gone", "node_lost"}  # triage names what is behind them instead
    assert set(entries) == set(causes.CAUSES) - behind
    lines = {"en": ["Symptom", "Cause", "Fix", "Check"], "zh": ["现象", "原因", "处理", "验证"]}[language]
    for key, entry in entries.items():
        assert re.findall(r"^- (\w+)[:：]", entry, re.MULTILINE) == lines, key


@pytest.mark.parametrize("page, kind, command", [(page, kind, command) for page in PAGES
                                                 for kind, command in commands(page)])
def test_commands_parse(page, kind, command):
    """Those that a cluster or real weights are needed for as well: options, recipes and overrides."""
    words = shlex.split(command)
    if words[0] == "mindglm":
        args = build_parser().parse_args(words[1:])
        if getattr(args, "recipe", None) and isinstance(args.recipe, str):
            recipe.load(ROOT / args.recipe, getattr(args, "overrides", None) or ())
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file(), command
        named = [ROOT / word for word in words[2:] if word.endswith(".yaml")]
        assert all(path.is_file() for path in named)
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    else:
        assert words[0] in ("source", "sysctl"), command
