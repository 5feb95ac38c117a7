"""Triage against log excerpts with known verdicts: real ones of msrun on CPU, and Ascend's in their public wording."""

import os
from pathlib import Path

import pytest

from mindglm.diagnose import causes, triage

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.txt"))


def lay_out(case: Path, folder: Path) -> dict[str, list[str]]:
    """Write the logs of a case into `folder`; {key: values} of its head: cause, rank, says, source."""
    head, log, lines = {}, None, []

    def close():
        if log is not None:
            name, _, written = log.partition(" @")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + ("\n" if lines else ""))
            os.utime(path, (float(written or 1_700_000_000),) * 2)

    for line in case.read_text().splitlines():
        if line.startswith("== "):
            close()
            log, lines = line[3:], []
        elif log is None:
            key, _, value = line.partition(": ")
            head.setdefault(key, []).append(value)
        else:
            lines.append(line)
    close()
    return head


@pytest.mark.parametrize("case", CORPUS, ids=lambda path: path.stem)
def test_verdict(case, tmp_path):
    expected = lay_out(case, tmp_path / "logs")
    verdict = triage.of_folder(tmp_path / "logs")
    told = f"{verdict.who} {verdict.summary}"
    assert verdict.cause == expected["cause"][0], verdict
    assert str(verdict.rank) == expected["rank"][0], verdict
    for words in expected.get("says", []):
        assert words in told or any(words in line.text for line in verdict.evidence), verdict
    for evidence in verdict.evidence:
        lines = Path(evidence.path).read_text().splitlines()
        assert lines[evidence.line - 1].strip() == evidence.text, "the line is not where it says"


def test_the_corpus_has_every_cause_and_every_case_a_source(tmp_path):
    seen = set()
    for case in CORPUS:
        head = lay_out(case, tmp_path / case.stem)
        assert head["source"][0], case
        seen.add(head["cause"][0])
    # Only ever the cause behind another verdict: what the scheduler or a waiting rank says.
    behind = {"scheduler_gone", "node_lost", "agents_wait", "collective_wait"}
    assert set(causes.CAUSES) - seen <= behind, set(causes.CAUSES) - seen
