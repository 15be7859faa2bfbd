"""torch.compile, where there is a compiler.

check_compiler()
model.compile()
"""

import os
import shutil


def check_compiler() -> None:
    """Raise ValueError unless there is the C++ compiler that torch.compile calls."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError("--compile needs a C++ compiler, g++ or what CXX names: install one, or leave it out")
