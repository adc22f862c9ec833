"""Run the notebooks beside this file with the interpreter that runs this program, and say which fail.

    python notebooks/run.py                  every notebook
    python notebooks/run.py adamp            the named ones
    python notebooks/run.py --write adamp    and store what they printed and drew

One line for each notebook, with the seconds it took; exit code 1 if one failed or went over its budget.
No file changes without --write; with it, only notebooks that ran to their end.
"""

import argparse
import os
import pathlib
import sys
import time

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = pathlib.Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(notebook: nbformat.NotebookNode, budget: float) -> str:
    """Fills in the outputs of a notebook; returns what went wrong, or nothing."""
    end = time.monotonic() + budget
    client = NotebookClient(
        notebook,
        # No folder of kernels: what remains is the kernel of this interpreter, whatever the user has registered.
        km=AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[])),
        resources={"metadata": {"path": str(FOLDER)}},
        timeout_func=lambda cell: max(1, end - time.monotonic()),
        record_timing=False,
        extra_arguments=["--log-level=40", "--InteractiveShell.colors=NoColor"],
    )
    try:
        client.execute()
    except CellExecutionError as error:
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        tracebacks = ["\n".join(o.traceback) for o in outputs if o.output_type == "error"]
        return "\n".join([f"{error.ename}: {error.evalue}", *tracebacks])
    except DeadKernelError as error:
        return str(error)
    except CellTimeoutError:
        pass
    return "" if time.monotonic() < end else f"went over its budget of {budget:g} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks, such as adamp; default: all")
    parser.add_argument("--budget", type=float, default=60, help="seconds for each notebook (default 60)")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    arguments = parser.parse_args()
    known = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    names = [pathlib.Path(name).stem for name in arguments.names] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}.")
    os.environ.pop("MPLBACKEND", None)  # figures belong in the notebook
    failures = 0
    for name in names:
        notebook = nbformat.read(known[name], as_version=4)
        start = time.monotonic()
        problem = execute(notebook, arguments.budget)
        failures += bool(problem)
        print("FAILED" if problem else "ok    ", name, f" {time.monotonic() - start:.1f} s ", problem, flush=True)
        if arguments.write and not problem:
            notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
            nbformat.write(notebook, known[name])
    return int(failures > 0 or not names)


if __name__ == "__main__":
    sys.exit(main())
