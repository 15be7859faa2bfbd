"""python scripts/run_notebook.py examples/quickstart.ipynb

Runs the cells of a notebook in its folder and stores their outputs, without what changes with every run: times,
versions. If a cell fails, its error is printed and the file stays as it is. Needs the extra `notebook`.
"""

from vidm.interrupts import one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from vidm.console import CommandParser, given_path
from vidm.files import atomic_write
from vidm.runtime import exit_on_user_error


def main() -> None:
    parser = CommandParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("notebook", type=given_path, help="the .ipynb file")
    path = parser.parse_args().notebook
    with exit_on_user_error():
        document = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(document, startup_timeout=300, record_timing=False, resources=resources)
    with TemporaryDirectory() as folder:
        # Sockets in this folder, instead of ports that anyone on the machine can read. A kernel that is given to the
        # constructor would not be shut down.
        client.km = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/kernel")
        client.execute()
    document.metadata["language_info"] = {"name": "python"}
    with exit_on_user_error(), atomic_write(path) as temporary:
        nbformat.write(document, temporary)
    print(f"ran {path}")


if __name__ == "__main__":
    main()
