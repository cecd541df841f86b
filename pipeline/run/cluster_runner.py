"""The batched runner on the nodes of a cluster: the same results as `runner.infer_requests` on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from pipeline.host.cluster import Cluster
from pipeline.run.plan import Entry, Message, Plan, Report, Request
from pipeline.run.runner import infer_in_threads, open_and_report
from pipeline.run.shipment import CHUNK_IMAGES, Shipment


@dataclass(frozen=True)
class _Setup:
    """What a worker needs: how to run the model, and the model."""

    plan: Plan
    model: Shipment


def infer_requests(cluster: Cluster, plan: Plan, requests: Sequence[Sequence[Entry]], on_message: Report) -> float:
    """Read, preprocess, infer and write the entries of every request, with one worker for every `plan.instances` cores.

    Args:
        cluster: its nodes must see the images and the results by the same names; the model is sent to them.

    Returns:
        The moment (`time.perf_counter()`) when the work was handed out: workers come and go.

    Raises:
        PipelineError: an image cannot be read or prepared, or the runtime or the cluster fails; results written so far
            stay.
    """
    if not requests:
        return time.perf_counter()
    with cluster.connect() as nodes:
        # One thread for each request, as on a machine with enough requests for all cores.
        cores = min(plan.instances, nodes.least_cores)
        model = Shipment.pack(plan.model.parent, [plan.model.name])
        setup = _Setup(replace(plan, instances=cores, cores=cores, processes=1), model)
        chunk = max(2 * cores, CHUNK_IMAGES // plan.batch)
        begun = time.perf_counter()
        with closing(nodes.run(_Worker, setup, requests, chunk=chunk, cores=cores)) as finished:
            for messages in finished:
                for message in _to_our_clock(messages):
                    on_message(message)
    return begun


class _Worker:
    """Keeps the model loaded as long as a worker of the cluster runs, and answers requests."""

    def __init__(self, setup: _Setup) -> None:
        self._messages: list[Message] = []
        self._kept = ExitStack()  # until the process ends
        with setup.model.unpack() as folder:
            self._plan = replace(setup.plan, model=folder / setup.plan.model.name)
            self._backend = self._kept.enter_context(open_and_report(self._plan, None, self._messages.append))

    def __call__(self, requests: Sequence[Sequence[Entry]]) -> list[Message]:
        infer_in_threads(self._plan, self._backend, requests, self._messages.append)
        messages, self._messages = self._messages, []
        return messages


def _to_our_clock(messages: Sequence[Message]) -> list[Message]:
    """Convert the times of another machine's requests, which have just arrived, to this machine's clock."""
    late = max((message.finished for message in messages if isinstance(message, Request)), default=0.0)
    shift = time.perf_counter() - late
    return [
        replace(message, submitted=message.submitted + shift, finished=message.finished + shift)
        if isinstance(message, Request)
        else message
        for message in messages
    ]
