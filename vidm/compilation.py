"""torch.compile, where there is a compiler.

check_compiler()
model.compile()
"""

import os
import shlex
import shutil


def check_compiler() -> None:
    """Raise ValueError unless there is the C++ compiler that torch.compile calls."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if not shutil.which(command[0]):
        raise ValueError("--compile needs a C++ compiler, g++ or what CXX names: install one, or leave it out")
