"""What the environment variables of torchrun say about this process. Ours.

place = torchrun_place(os.environ)  # (rank, local rank, world size), or None
"""

import socket
from collections.abc import Mapping

_TORCHRUN_ANSWERS_S = 20.0
# Set by torchrun, and by users and other programs in whose shell they may have remained.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
_LAUNCHER = (*_NUMBERS, "MASTER_ADDR")


def is_one_node(environment: Mapping[str, str]) -> bool:
    """Whether torchrun started all processes on this machine."""
    return environment.get("GROUP_WORLD_SIZE") == "1"


def torchrun_place(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """This process's (rank, local rank, world size) if torchrun started it, None if it was started by hand.

    torchrun is recognised by TORCHELASTIC_RUN_ID. Raises ValueError, naming the variables to unset, if others ask for
    several processes, if torchrun's are incomplete, or if it does not answer. Ours.
    """
    given = [name for name in ("TORCHELASTIC_RUN_ID", *_LAUNCHER) if name in environment]
    advice = f"start the command with torchrun, or run: unset {' '.join(given)}"
    if "TORCHELASTIC_RUN_ID" not in environment:
        if environment.get("WORLD_SIZE", "1") not in ("", "1"):
            raise ValueError(f"WORLD_SIZE is {environment['WORLD_SIZE']} without torchrun: {advice}")
        return None
    values = ", ".join(f"{name}={environment.get(name, 'missing')}" for name in _LAUNCHER)
    try:
        rank, world_size, local_rank, port = (int(environment[name]) for name in _NUMBERS)
        address = environment["MASTER_ADDR"], port
        if not 0 <= local_rank <= rank < world_size:
            raise ValueError
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun listens before it starts processes
            socket.create_connection(address, _TORCHRUN_ANSWERS_S).close()
    except OSError as error:
        raise ValueError(f"torchrun does not answer ({values}: {error}): {advice}") from error
    except (KeyError, ValueError):
        raise ValueError(f"torchrun's variables are incomplete or contradict each other ({values}): {advice}") from None
    return rank, local_rank, world_size
