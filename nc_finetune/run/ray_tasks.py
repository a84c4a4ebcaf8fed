"""Calls of a function as tasks of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nc_finetune._common.stopping import ToldToEnd, handlers_kept, noted_signals
from nc_finetune.errors import missing_extra

_LOOK_EVERY = 0.5  # seconds between two looks at signals


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray", "--executor ray") from error
    return ray


class RayTasks:
    """Calls functions on a cluster of this machine, or on an existing one.

    A task whose worker is lost runs again elsewhere; one that loses ``max_lost_workers`` more has failed. Data and
    weights must be reachable by the same names from every machine of the cluster.

    Args:
        address: Of an existing cluster, ``"auto"`` for one that runs on this machine; ``None`` starts one.
        cpus: CPUs of a task, from which Ray sets the number of threads that it computes with.
        gpus: GPUs of a task; a share lets several tasks have one.
        max_lost_workers: How often the worker of a task may be lost.

    Raises:
        ValueError: If a number is out of range.
        ImportError: If ray is not installed.
        ConnectionError: On entering :meth:`cluster`, if none answers at the address.
    """

    calls_of_a_worker = 0  # before its process ends; 0 is all of them

    def __init__(
        self, address: str | None = None, *, cpus: float = 1, gpus: float = 0, max_lost_workers: int = 3
    ) -> None:
        if cpus <= 0 or gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus at least 0, got {cpus} and {gpus}")
        self.address = address
        self.cpus = cpus
        self.gpus = gpus
        self.max_lost_workers = max_lost_workers
        self._ray = _import_ray()

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Connect to the cluster, or start one, inside the ``with`` block."""
        started = not self._ray.is_initialized()
        if started:
            with handlers_kept():  # Ray's own would end this process with another status
                self._connect()
        try:
            yield
        finally:
            if started:
                self._ray.shutdown()

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": logging.WARNING}
        try:
            self._ray.init(address=self.address, **quiet)
        except ConnectionError as error:
            raise ConnectionError(
                f"no Ray cluster answers at {self.address}: {error}; look there by `ray status`, and set RAY_AUTH_MODE"
                " (token, with the same ~/.ray/auth_token, or disabled) alike on all machines"
            ) from error

    @property
    def workers(self) -> int:
        """How many tasks the cluster runs at a time, at least 1."""
        found = self._ray.cluster_resources()
        places = [found.get("CPU", 0) / self.cpus]
        if self.gpus:
            places.append(found.get("GPU", 0) / self.gpus)
        return max(1, int(min(places)))

    def each(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a function with each of several tuples of arguments, inside of :meth:`cluster`.

        Yields:
            The place of the call, and what came of it, as soon as it is there: what the function returned, or the
            exception with which it, or its worker, ended.
        """
        task = self._ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=self.max_lost_workers,
            max_calls=self.calls_of_a_worker,
        )(function)
        waiting = {task.remote(*arguments): place for place, arguments in enumerate(calls)}
        with noted_signals() as noted:  # what a handler raises inside of Ray is lost
            while waiting:
                finished, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_LOOK_EVERY)
                found = [(waiting.pop(done), self._result(done)) for done in finished]
                if noted:  # and a cluster that was told, too, may have failed tasks
                    raise ToldToEnd(noted[0])
                yield from found

    def _result(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except self._ray.exceptions.RayError as error:
            return error
