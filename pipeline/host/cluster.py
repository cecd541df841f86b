"""The only user of Ray: tasks over the nodes of a cluster, with the order and the errors of a run on one machine.

Ray is imported here and in `cluster_worker` only, and only when a command asks for it. A worker runs a function of
another module, which takes and returns plain data.

Tasks, not actors: a worker process keeps what it opened for the next chunk, as an actor would, but when a node is lost,
its chunks go to the remaining nodes. An actor's chunks would wait for the actor, and the actor for cores that others
hold.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import BackendError, ConfigError, first_line, last_line
from pipeline.host import cluster_token
from pipeline.host.cluster_worker import Deaths, Fault, Open, Success, answer_chunk
from pipeline.host.hardware import available_cores
from pipeline.host.processes import sigint_held_back
from pipeline.terminal import console
from pipeline.terminal.counts import counted

INSTALL = "pip install 'ray[data]>=2.60'"
_LEAST_RAY = (2, 60)  # the oldest that was tested; 2.50 has no `ray.data.TaskPoolStrategy`


# The driver spends a few ms on a chunk, and keeps a few KiB of each; the largest runs get larger chunks instead.
_MOST_CHUNKS = 20_000
_CHUNKS_PER_WORKER = 4  # at least, where there is enough work: while the last ones finish, other workers are idle
_LOOK_AROUND_S = 30.0  # between two counts of the nodes
_CONNECT_S = 10.0
_SILENT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
_STORE_BYTES = 512 << 20  # of a Ray that this program starts: it only holds the package and the names of images


@dataclass(frozen=True)
class Cluster:
    """Where `--engine ray` computes."""

    address: str | None = None  # auto or host:port; None: a Ray of the run's own, on this machine

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
            raise BackendError(f"--engine ray: Ray Data is not installed; run: {INSTALL}")
        found = metadata.version("ray")
        if tuple(map(int, found.split(".")[:2])) < _LEAST_RAY:
            raise BackendError(f"--engine ray: Ray {found} is too old; run: {INSTALL}")
        if self.address is not None and "://" in self.address:
            raise ConfigError(
                f"--address {self.address}: Ray Data runs on a node of the cluster, not through Ray Client; run this "
                "command on a node (or by `ray job submit`) with --address auto"
            )

    def __str__(self) -> str:
        return "a Ray of its own" if self.address is None else f"the Ray cluster at {self.address}"

    @contextlib.contextmanager
    def connect(self) -> Iterator[Nodes]:
        """Join the cluster, or start one of our own; leave or end it at the end.

        Raises:
            BackendError: there is no cluster at the address, or it has no core.
        """
        os.environ.update(cluster_token.ENVIRONMENT)
        with cluster_token.added_to_environment(cluster_token.token_settings(self.address)):
            with sigint_held_back(), warnings.catch_warnings():  # Ray's import would swallow Ctrl-C
                warnings.simplefilter("ignore")  # of Ray's own code
                import ray
                import ray.data

            try:
                self._join()
                nodes = Nodes(self)
                console.detail(f"{self}: {nodes}")
                yield nodes
            finally:
                ray.shutdown()

    def check(self) -> None:
        """Raise PipelineError if nobody listens at the address: Ray would try for ever."""
        if self.address in (None, "auto"):
            return
        host, _, port = str(self.address).rpartition(":")
        if not host or not port.isascii() or not port.isdigit():
            raise ConfigError(f"--address {self.address}: expected auto or HOST:PORT, as `ray start --head` prints it")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as err:
            raise BackendError(
                f"--address {self.address}: nobody answers ({getattr(err, 'strerror', None) or err}); start a node "
                f"there by: ray start --head --port {port}"
            ) from None

    def _join(self) -> None:
        import ray

        if self.address is None:
            with sigint_held_back():  # Ray's processes never receive it, and none stays half-started
                ray.init(
                    address="local",
                    num_cpus=available_cores(),
                    object_store_memory=_STORE_BYTES,
                    include_dashboard=False,
                    **_SILENT,
                )
            return
        self.check()
        # Nodes with another version of this code installed must not give other answers.
        code = {"py_modules": [str(Path(__file__).parents[1])], "excludes": ["**/__pycache__"]}
        try:
            ray.init(address=self.address, runtime_env=code, **_SILENT)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as err:
            raise BackendError(
                f"--address {self.address}: cannot be joined ({first_line(err)}); start a node by: ray start --head. "
                f"{cluster_token.note()}"
            ) from None


class Nodes:
    """The nodes of a cluster that this process has joined."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._cores = _cores_of_nodes()
        if not self._cores:
            raise BackendError(f"--address {cluster.address}: no node has a core; add one by: ray start --address ...")

    @property
    def least_cores(self) -> int:
        """Cores of the smallest node that has any."""
        return min(self._cores)

    def __str__(self) -> str:
        return f"{counted(len(self._cores), 'node')}, {counted(sum(self._cores), 'core')}"

    def run(
        self,
        open_work: Open,
        setup: Any,
        tasks: Sequence[Any],
        *,
        chunk: int,
        cores: int = 1,
        workers: int | None = None,
        in_order: bool = False,
    ) -> Generator[Any, None, None]:
        """Yield what `open_work(setup)` answers to each chunk of tasks. Close it before leaving the cluster.

        A chunk whose worker or node dies is repeated elsewhere, so answering must be idempotent.

        Args:
            open_work: a function of a module; it is called once in each worker process.
            setup: plain data, sent to each node once.
            tasks: plain data.
            chunk: tasks that are sent to a worker together: fewer for little work, more for much.
            cores: of the node, for each worker.
            workers: largest number at the same time; None: as many as fit.
            in_order: yield in the order of the tasks, not as they finish.

        Raises:
            PipelineError: what a worker raised; a chunk ended its worker again and again; no node has room any more.
            RuntimeError: what else a worker raised, with its traceback.
        """
        import ray
        from ray.data import DataContext, TaskPoolStrategy

        room = max(1, min(workers or sum(self._cores), sum(count // cores for count in self._cores)))
        size = max(1, min(chunk, len(tasks) // (room * _CHUNKS_PER_WORKER)), -(-len(tasks) // _MOST_CHUNKS))
        rows = [
            {"number": number, "tasks": pickle.dumps(list(tasks[start : start + size]))}
            for number, start in enumerate(range(0, len(tasks), size))
        ]
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = in_order
        _hush()
        deaths = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Deaths).remote()
        work = functools.partial(
            answer_chunk, open_work=open_work, setup=ray.put(setup), deaths=deaths, folder=str(Path.cwd())
        )
        # One chunk per block: a block is the unit that Ray sends, repeats and returns.
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            work, num_cpus=cores, compute=TaskPoolStrategy(size=workers)
        )
        with _while_there_is_room(cores), contextlib.closing(_outcomes(dataset)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Fault):
                    raise outcome.kind(outcome.text)
                if outcome.deaths:
                    console.note(f"workers or nodes of the cluster died ({outcome.deaths}); the work is done again")
                yield outcome.answer


@contextlib.contextmanager
def _while_there_is_room(cores: int) -> Iterator[None]:
    """Interrupt the body when no node has so many cores: Ray would wait for one for ever."""
    over, lost = threading.Event(), threading.Event()
    waiting = threading.get_ident()

    def watch() -> None:
        while not over.wait(_LOOK_AROUND_S):
            if max(_cores_of_nodes(), default=0) < cores:
                lost.set()
                signal.pthread_kill(waiting, signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if threading.current_thread() is threading.main_thread():  # the only one that a signal interrupts
        watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise BackendError(
            f"--engine ray: no node with {counted(cores, 'core')} is left; what is done is kept, add nodes and run "
            "the same command again"
        ) from None
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()


def _cores_of_nodes() -> list[int]:
    import ray

    cores = (int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return [count for count in cores if count]


def _hush() -> None:
    """Keep Ray Data's log in its files: the run prints its own messages."""
    logger = logging.getLogger("ray.data")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, logging.StreamHandler)]


def _outcomes(dataset: Any) -> Generator[Success | Fault, None, None]:
    """Run the dataset; yield what comes out."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        with contextlib.closing(dataset.iter_batches(batch_size=None, prefetch_batches=0).__iter__()) as batches:
            for batch in batches:
                yield from map(pickle.loads, batch["outcome"])
    except (ray.exceptions.RayError, ExecutionTimeoutError) as err:
        raise BackendError(
            f"--engine ray: Ray gave up ({last_line(err)}); what is done is kept, run the same command again"
        ) from None
