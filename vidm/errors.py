"""What a script says when it cannot go on: one line and an exit code, no traceback.

with errors_for_people():
    main()
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vidm.distributed import rank


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn an error that the user can mend into one line and exit code 2, and an interruption into one line."""
    where = f"[process {rank()}] " if rank() else ""
    try:
        yield
    except (ValueError, OSError) as error:
        # A data loading process sends its whole traceback along; what it had to say is the last line.
        reason = re.sub(r"^(\w+\.)+\w*Error: ", "", str(error).strip().splitlines()[-1])
        print(f"{where}error: {reason}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{where}interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
