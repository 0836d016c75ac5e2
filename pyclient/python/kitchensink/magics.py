"""`%%ks`: runs a notebook cell on the cluster. `%load_ext kitchensink` makes it known.

    %%ks --near /ks/flights/2013-01.csv -o frame
    import pandas as pd
    frame = pd.read_csv("/ks/flights/2013-01.csv")
    frame.describe()

What the cell prints is seen as it happens, the value of its last expression is shown, what it raises is raised here.
"""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from . import _client, cells
from .errors import NotSerializable

__all__ = ["KitchenSinkMagics", "register"]


def _split(names: list[str] | None) -> list[str] | None:
    return None if names is None else [name for several in names for name in several.split(",") if name]


@magics_class
class KitchenSinkMagics(Magics):  # type: ignore[misc]
    """The magics."""

    @magic_arguments()
    @argument("-i", "--input", action="append", help="names to take along (default: those that the cell reads)")
    @argument("-o", "--output", action="append", help="names of the cell to bring back")
    @argument("--near", action="append", default=[], help="run it on a node that has this path (repeat)")
    @argument("--node", help="run it on the node of this name")
    @argument("--queue", help="run it in this queue")
    @argument("--timeout", type=float, help="seconds it may run")
    @argument("--async", dest="later", action="store_true", help="do not wait; the value is the job")
    @cell_magic
    def ks(self, line: str, cell: str) -> Any:
        """Runs the cell on a node of the cluster."""
        chosen = parse_argstring(self.ks, line)
        values = cells.inputs(cell, self.shell.user_ns, _split(chosen.input))
        outputs = _split(chosen.output) or []
        try:
            job = _client.client().call(
                cells.run,
                cell,
                values,
                outputs,
                _locality=chosen.near or None,
                _node=chosen.node,
                _queue_name=chosen.queue,
                _timeout=chosen.timeout,
            )
        except NotSerializable as error:
            raise cells.explain(error, values) from error
        if chosen.later:
            return job
        try:
            value, made = _client.client().result(job)
        except KeyboardInterrupt:
            job.cancel()
            raise
        self.shell.user_ns.update(made)
        return value

    @line_magic
    def ks_client(self, line: str) -> Any:
        """`%ks_client URL`: which node the cells of `%%ks` go through; without a URL, says which."""
        return _client.setup_client(line.strip()) if line.strip() else _client.client()


def register(shell: Any) -> None:
    """What `%load_ext kitchensink` does."""
    shell.register_magics(KitchenSinkMagics)
