"""A joblib backend: `joblib.Parallel`, and so scikit-learn, on the workers of the cluster.

>>> import kitchensink.joblib                         # makes the backend known
>>> with joblib.parallel_backend("kitchensink"):      # or parallel_config; url="ks://host1:6323" for another node
...     cross_val_score(model, X, y, n_jobs=-1)

Keywords of `parallel_backend` that begin with `_` are those of `Client.call`, and hold for all calls.
"""

from __future__ import annotations

import concurrent.futures
import weakref
from typing import Any, Callable

from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend
from joblib.parallel import register_parallel_backend

from . import _client
from .bulk import cancel_rest
from .job import Job

__all__ = ["KitchenSinkBackend"]


def _run_batch(batch: Callable[[], Any]) -> Any:
    return batch()


class KitchenSinkBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Sends joblib's batches as calls: by `client`, else by one of the node of `url`, else by the process's client."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        client: _client.Client | None = None,
        url: str | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level or 0, inner_max_num_threads=inner_max_num_threads)
        unknown = [name for name in options if not name.startswith("_")]
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: not an option of the kitchensink backend")
        self._client = client or (_client.Client(url) if url is not None else _client.client())
        self._options = options
        self._going: weakref.WeakSet[Job] = weakref.WeakSet()
        self._told: concurrent.futures.ThreadPoolExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """All workers of the cluster for -1 (and `-n` leaves n-1 of them out), else `n_jobs`."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        nodes = self._client.nodes().values()
        workers = sum(int(node.get("workers") or 0) for node in nodes if node.get("alive", True))
        return max(1, workers + 1 + (-1 if n_jobs is None else n_jobs))

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Job:
        """Sends one batch."""
        job: Job = self._client.call(_run_batch, func, **{**self._options, "_async": True})
        self._going.add(job)
        if callback is not None:
            told = callback
            # In a thread of its own: a callback sends further batches, and must not keep the one that receives.
            job.add_done_callback(lambda ended: self._thread().submit(told, ended))
        return job

    def _thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._told is None:
            self._told = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="kitchensink-joblib")
        return self._told

    def retrieve_result_callback(self, out: Job) -> Any:
        """The results of a batch."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancels the batches that go on."""
        cancel_rest(list(self._going))

    def terminate(self) -> None:
        """At the end of a `Parallel`."""
        told, self._told = self._told, None
        if told is not None:
            told.shutdown(wait=False)

    def get_nested_backend(self) -> tuple[Any, None]:
        """`Parallel` inside of a call runs in the call's own process."""
        return SequentialBackend(nesting_level=self.nesting_level + 1), None


register_parallel_backend("kitchensink", KitchenSinkBackend)
