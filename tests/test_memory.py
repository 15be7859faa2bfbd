"""Claims about memory."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from vidm.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for kept in (False, True, False):
    assert keep_freed_memory(kept)
    faults()
    print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_kept_memory_is_used_again_and_not_asked_for_page_by_page():
    out = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True).stdout
    returned, kept, returned_again = map(int, out.split())
    assert kept < 0.01 * returned
    assert kept < 0.01 * returned_again
