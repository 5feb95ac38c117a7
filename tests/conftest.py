"""What all tests share: where noisy libraries write, and that a test is green or red, never skipped."""

import os
import tempfile

import pytest

# mindformers makes its log folder in the working directory when it is imported; MindSpore warns on standard error.
os.environ.setdefault("LOG_MF_PATH", os.path.join(tempfile.gettempdir(), "mindglm-tests-log"))
os.environ.setdefault("GLOG_v", "3")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip or an expected failure would be a promise that nobody keeps: it counts as a failure."""
    report = (yield).get_result()
    if report.skipped or hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: tests of this suite are not skipped and not expected to fail"
