"""English names of the OpenMoji drawings, from the code points in their file names.

Source: the Unicode CLDR short names in the PyPI package `emoji`; single characters that are no emoji take their
name from Python's `unicodedata`. OpenMoji's own pictograms (private-use code points) have no name and are left out.
"""

import unicodedata

_QUOTES = str.maketrans("", "", "\"'\u2018\u2019\u201c\u201d\u300c\u300d")
_VARIATION = "\ufe0f"
_TONES = tuple(f"{tone} skin tone" for tone in ("medium-light", "medium-dark", "light", "medium", "dark"))


def _cldr_names() -> dict[str, str]:
    """Character sequence without variation selectors -> CLDR name."""
    import emoji

    names: dict[str, str] = {}
    for sequence, data in emoji.EMOJI_DATA.items():
        names.setdefault(sequence.replace(_VARIATION, ""), data["en"].strip(":").replace("_", " "))
    return names


def _is_flag(text: str) -> bool:
    """Two regional indicators (France) or a tag sequence (Scotland)."""
    return all("\U0001f1e6" <= c <= "\U0001f1ff" for c in text) or "\U000e007f" in text


def drawing_names(stems) -> dict[str, str]:
    """{file stem such as `1F600`: name such as `grinning face`} for the stems that have a name.

    Quotation marks and apostrophes are removed: in a prompt they would mark text to be rendered (section 3.1).
    """
    cldr, names = _cldr_names(), {}
    for stem in sorted(stems):
        text = "".join(chr(int(point, 16)) for point in stem.split("-")).replace(_VARIATION, "")
        name = cldr.get(text) or (unicodedata.name(text, "").lower() if len(text) == 1 else "")
        if not name:
            continue
        if len(text) > 1 and _is_flag(text):
            name = f"flag of {name}"
        names[stem] = name.translate(_QUOTES)
    return names


def base_name(name: str) -> str:
    """The name without its skin tones: all tones of one drawing are trained on or held out together."""
    for tone in _TONES:
        name = name.replace(f" {tone}", "")
    return name
