"""Writes docs/<language>/recipe_reference.md from the recipe schema: `python docs/recipe_reference.py`.

The English texts are those under the fields of mindglm/recipe/schema.py and models.py. docs/zh/recipe_terms.yaml holds
the Chinese ones, a line a key; a key without one is an error, so that the two languages hold the same.
"""

import re
import sys
from pathlib import Path

import yaml

from mindglm.recipe import differences, documentation
from mindglm.recipe.documentation import Key
from mindglm.recipe.loading import value_to_yaml

FOLDER = Path(__file__).parent
MODEL = "model.model_config"

WORDS = {
    "en": {
        "title": "Recipe reference", "key": "key", "takes": "takes", "default": "default", "meaning": "meaning",
        "resume": "on resume", "required": "must be given", "with": "with",
        "safe": "safe", "numerics": "numerics", "forbidden": "forbidden",
        "head": ("Made from the schema by `python docs/recipe_reference.py`; a test keeps it so. One YAML file is one "
                 "run. Keys that are left out have their default; an unknown key is an error. Any value can be "
                 "replaced on the command line: `runner_config.stop_step=10`. `mindglm recipe explain KEY` prints "
                 "the same, `mindglm recipe schema` a JSON Schema for editors."),
        "classes": ("The last column says what a change means for a run that goes on from its checkpoint: *safe*: the "
                    "same run; *numerics*: it goes on, and is another run from there; *forbidden*: it is refused."),
    },
    "zh": {
        "title": "配方参考", "key": "键", "takes": "取值", "default": "默认值", "meaning": "含义",
        "resume": "续训", "required": "必填", "with": "用于", "safe": "安全", "numerics": "影响数值", "forbidden": "禁止",
        "head": ("由 `python docs/recipe_reference.py` 从配方结构生成，并由测试保证一致。一个 YAML 文件就是一次训练。未写出的键取"
                 "默认值；未知的键报错。任何值都可以在命令行上替换：`runner_config.stop_step=10`。"
                 "`mindglm recipe explain KEY` 打印同样的说明，`mindglm recipe schema` 输出供编辑器使用的 JSON Schema。"),
        "classes": ("最后一列说明从检查点续训时改动该键的后果。*安全*：仍是同一次训练；*影响数值*：可以继续，但从此处起成为另一次训练；"
                    "*禁止*：拒绝继续。"),
    },
}

# Type and range in Chinese: what mindglm.recipe.wording and ranges say, piece by piece.
CHINESE = (
    (r"a list of (\d+) (integers|numbers|texts)", lambda m: f"{m[1]} 个{NOUNS[m[2]]}的列表"),
    (r"a list of (integers|numbers|texts)", lambda m: f"{NOUNS[m[1]]}列表"),
    (r"one of (.+)", r"\1 之一"), (r"true or false", "true 或 false"), (r"text or null", "字符串或 null"),
    (r"\ban integer\b", "整数"), (r"\ba number\b", "数"), (r"^text$", "字符串"), (r"each ", "每项"),
    (r"\bor at least ", "或不小于 "), (r"at least ", "不小于 "), (r"at most ", "不大于 "), (r"more than ", "大于 "),
    (r"less than ", "小于 "), (r" and ", "，"), (r", ", "，"),
)
NOUNS = {"integers": "整数", "numbers": "数", "texts": "字符串"}


def identity(key: Key) -> str:
    """What a key is called in recipe_terms.yaml: its path, with its kind where a path stands with several."""
    many = key.path == "objective" or key.path.startswith((f"{MODEL}.", "objective.")) or key.path == MODEL
    return f"{key.path} ({key.when.rpartition(' ')[2]})" if many else key.path


def translated(expected: str) -> str:
    for pattern, replacement in CHINESE:
        expected = re.sub(pattern, replacement, expected)
    return expected


def page(language: str, terms: dict[str, str]) -> str:
    """The whole reference. KeyError for a key without a translation."""
    words = WORDS[language]
    meaning = (lambda key: " ".join(key.doc.split())) if language == "en" else lambda key: terms[identity(key)]
    lines = [f"# {words['title']}", "", words["head"], "", words["classes"], "",
             *_table([key for key in documentation.tree() if not key.children], words, meaning, language)]
    for key in documentation.keys():
        if not key.children:
            continue
        kind = key.when.rpartition(" ")[2]
        lines += ["", f"## {key.path}" + (f" ({kind})" if kind else ""), "", meaning(key), ""]
        lines += _table([child for child in key.children if not child.children], words, meaning, language)
    return "\n".join(lines) + "\n"


def _table(keys: list[Key], words: dict[str, str], meaning, language: str) -> list[str]:
    columns = [words[name] for name in ("key", "takes", "default", "meaning", "resume")]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key in keys:
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        takes = key.expected if language == "en" else translated(key.expected)
        cells = [f"`{key.name}`", takes, words["required"] if key.required else f"`{value_to_yaml(default)}`",
                 meaning(key), words[differences.class_of(key.path)[0]]]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def pages() -> dict[Path, str]:
    """Path -> text of both languages."""
    terms = yaml.safe_load((FOLDER / "zh" / "recipe_terms.yaml").read_text())
    known = {identity(key) for key in documentation.keys()}
    if set(terms) != known:
        raise SystemExit(f"docs/zh/recipe_terms.yaml: without translation: {sorted(known - set(terms))}; "
                         f"no key any more: {sorted(set(terms) - known)}")
    return {FOLDER / language / "recipe_reference.md": page(language, terms) for language in WORDS}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path, file=sys.stderr)
