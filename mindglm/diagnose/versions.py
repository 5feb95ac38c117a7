"""Which versions belong together, and which are installed; nothing of them is imported.

Sources, read 2026-11: mindformers 1.9.0's installation page (mindspore.cn: MindSpore 2.9.0, CANN 9.0.0, driver and
firmware 26.0.RC1); the check inside MindSpore 2.9.0's wheel (run_check/_check_version.py: CANN 8.2, 8.3, 8.5, 9.0);
CANN 9.1.0's release notes ("CANN and Ascend HDK Version Compatibility", with rows for 8.5.2 and 9.0.X).
"""

import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mindglm.diagnose.findings import Finding, fail, ok, warn

PYTHON = ((3, 10), (3, 11))
MINDSPORE, MINDFORMERS, CANN, DRIVER = "2.9.0", "1.9.0", "9.0.0", "26.0.RC1"
CANN_ACCEPTED = ("8.2", "8.3", "8.5", "9.0")
"""By MindSpore 2.9.0, which warns about any other."""
DRIVERS = {"8.5": ("25.0", "25.2", "25.3", "25.5", "25.7", "26.0", "26.1"),
           "9.0": ("25.0", "25.2", "25.3", "25.5", "25.7", "26.0", "26.1")}
"""CANN -> drivers (Ascend HDK) it runs on."""
PACKAGES = ("mindspore", "mindformers", "numpy", "safetensors", "tokenizers", "pyyaml", "pillow")


def installed() -> dict[str, str]:
    """{package: version} of PACKAGES, without those that are missing; and "python"."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a package that is missing has no entry
    return found


def cann(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str | None:
    """Version of CANN, from where its set_env.sh points to or from its usual folders; None when there is none."""
    homes = [Path(environment["ASCEND_HOME_PATH"])] if environment.get("ASCEND_HOME_PATH") else []
    homes += [root / "usr/local/Ascend" / name for name in ("cann", "ascend-toolkit/latest")]
    for home in homes:
        for file in (home / "compiler/version.info", *sorted(home.glob("*-linux/ascend_toolkit_install.info"))):
            version = _version_in(file)
            if version is not None:
                return version
    return None


def driver(root: Path = Path("/")) -> str | None:
    """Version of the Ascend driver, or None."""
    return _version_in(root / "usr/local/Ascend/driver/version.info")


def _version_in(file: Path) -> str | None:
    try:
        match = re.search(r"^version=(\S+)", file.read_text(errors="replace"), re.MULTILINE | re.IGNORECASE)
    except OSError:
        return None
    return match[1] if match else None


def check(found: Mapping[str, str], cann_found: str | None, driver_found: str | None, ascend: bool) -> list[Finding]:
    """Findings on the versions of Python and packages, and where there are Ascend devices on CANN and its driver."""
    findings = [_python(found), _numpy(found), _mindspore(found), _mindformers(found)]
    findings += [fail(name, f"{name} is not installed", f"pip install {name}, or pip install -e . in the checkout")
                 for name in PACKAGES[3:] if name not in found]
    if ascend or cann_found is not None:
        findings.append(_cann(cann_found))
    if ascend:
        findings.append(_driver(driver_found, cann_found))
    return findings


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _python(found: Mapping[str, str]) -> Finding:
    version = found["python"]
    if tuple(map(int, version.split(".")[:2])) in PYTHON:
        return ok("python", version)
    return fail("python", version, "MindSpore 2.9 is used with Python 3.10 or 3.11: make another environment")


def _numpy(found: Mapping[str, str]) -> Finding:
    version = found.get("numpy")
    if version is None:
        return fail("numpy", "not installed", "pip install 'numpy<2'")
    if int(version.split(".")[0]) < 2:
        return ok("numpy", version)
    return fail("numpy", version, "MindSpore 2.9 breaks with NumPy 2: pip install 'numpy<2'")


def _mindspore(found: Mapping[str, str]) -> Finding:
    version = found.get("mindspore")
    if version is None:
        return fail("mindspore", "not installed", f"pip install mindspore=={MINDSPORE} mindformers=={MINDFORMERS}")
    if version == MINDSPORE:
        return ok("mindspore", version)
    return fail("mindspore", version, f"mindglm is made for {MINDSPORE} (it uses a private interface of that version): "
                f"pip install mindspore=={MINDSPORE} mindformers=={MINDFORMERS}")


def _mindformers(found: Mapping[str, str]) -> Finding:
    version = found.get("mindformers")
    if version == MINDFORMERS:
        return ok("mindformers", f"{version}, the pair of MindSpore {MINDSPORE}")
    return fail("mindformers", version or "not installed",
                f"MindSpore {MINDSPORE} pairs with it: pip install mindformers=={MINDFORMERS}")


def _cann(version: str | None) -> Finding:
    if version is None:
        return fail("cann", "there are Ascend devices, but no CANN was found", "install CANN "
                    f"{CANN} and source its set_env.sh (launch/environment.sh does)")
    if _short(version) == _short(CANN):
        return ok("cann", f"{version}, as MindSpore {MINDSPORE} and mindformers {MINDFORMERS} expect")
    if _short(version) in CANN_ACCEPTED:
        return warn("cann", f"{version}: MindSpore {MINDSPORE} accepts it, mindformers {MINDFORMERS} pairs with {CANN}",
                    f"install CANN {CANN} unless something else needs {version}")
    return fail("cann", f"{version}: MindSpore {MINDSPORE} accepts {', '.join(CANN_ACCEPTED)}", f"install CANN {CANN}")


def _driver(version: str | None, cann_found: str | None) -> Finding:
    if version is None:
        return warn("driver", "no /usr/local/Ascend/driver/version.info: its version is unknown",
                    "in a container mount /usr/local/Ascend/driver of the host; npu-smi info shows the version")
    known = DRIVERS.get(_short(cann_found or ""), ())
    if not known:
        return ok("driver", f"{version}; no table for CANN {cann_found}")
    if _short(version) in known:
        return ok("driver", f"{version}, which CANN {cann_found} runs on")
    return fail("driver", f"{version} is none that CANN {cann_found} runs on ({', '.join(known)})",
                f"ask the machine's operator for driver and firmware {DRIVER}")
