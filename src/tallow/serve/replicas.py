"""Several servers behind one, on Ray Serve: each replica is the whole server, with its own engine processes.

The front, which the user has started, listens, asks for keys and bounds bodies; then it hands each request to the
replica that most likely has the beginning of its prompt in its cache. Between them go bytes and JSON. Ray starts the
replicas, on this machine or those of a cluster (RAY_ADDRESS), and again if they die.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import ray
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from tallow.errors import TallowError
from tallow.serve.app import HEALTH_STATUS
from tallow.serve.errors import ApiError
from tallow.serve.http import ADMIN_PATHS, Guard, Json, Keys, error_response, while_client_stays
from tallow.serve.metrics import METRICS_TYPE, ErrorMetrics
from tallow.serve.prefixes import Prefixes, beginnings
from tallow.serve.ray_cluster import is_own_cluster
from tallow.serve.replica import Replica, raw_headers, request_head
from tallow.serve.settings import ServeSettings

MOST_TRIES = 3
"""So often a request is sent to a replica that dies before it has answered anything."""
HEALTH_PERIOD_S = 1.0
ASK_ALL_S = 10.0
ENDING_S = 5.0
ROOM = 64
"""Requests that a replica is given beyond those that it takes on, so that it says itself when to come again."""


class PrefixRouter(RequestRouter):
    """Sends each request to the replica that `Prefixes` names; its names come with it."""

    def initialize_state(self, **_settings: Any) -> None:
        self._prefixes = Prefixes()
        self._sent: dict[str, str] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        by_name = {replica.replica_id.to_full_id_str(): replica for replica in candidate_replicas}
        return [[by_name[name]] for name in self._prefixes.rank(_names(pending_request), by_name)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        replica = replica_id.to_full_id_str()
        self._sent[pending_request.metadata.internal_request_id] = replica
        self._prefixes.send(_names(pending_request), replica)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        if self._sent.pop(internal_request_id, None) is not None:
            self._prefixes.finish(replica_id.to_full_id_str())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        names = {replica.replica_id.to_full_id_str() for replica in replicas}
        self._prefixes.keep(names)
        self._sent = {request: replica for request, replica in self._sent.items() if replica in names}


class Front:
    """What clients see of all replicas: an ASGI application, to be put behind a `Guard`.

    Args:
        settings: Of the server.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.limits = settings.limits
        self.metrics = ErrorMetrics()
        self.names = [name for model, each in settings.models.items() for name in (model, *each.adapters)]
        self._settings = settings
        self._application = f"tallow-{uuid.uuid4().hex}"
        self._num_requests = 0
        self._is_draining = False
        self._handle: DeploymentHandle[Any] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within this block there are replicas, once they are loaded."""
        try:
            yield
        finally:
            await asyncio.to_thread(self._end)

    async def load(self) -> None:
        """Start the replicas, and wait until they can answer.

        Raises:
            TallowError: They do not start.
        """
        try:
            self._handle = await asyncio.to_thread(self._deploy)
        except (RayError, RayServeException, RuntimeError) as error:
            if not self._is_draining:  # which ends those that start, too
                raise TallowError(
                    f"the replicas do not start: {error}", "serve one first: leave out --replicas"
                ) from error

    async def drain(self) -> None:
        """Take no more requests, and wait until those that there are have been answered, or for `drain_s`."""
        self._is_draining = True
        end_s = time.monotonic() + self.limits.drain_s
        while self._num_requests and time.monotonic() < end_s:
            await asyncio.sleep(0.05)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        await while_client_stays(receive, self._answer(scope, body, receive, send))

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            if path == "/health":
                await (await self._health())(scope, receive, send)
                return
            if self._is_draining:
                raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
            self._num_requests += 1
            try:
                if path == "/metrics":
                    await (await self._metrics(scope))(scope, receive, send)
                elif path.startswith(ADMIN_PATHS):
                    await self._answer_of_all(scope, body, send)
                else:
                    await self._forward(scope, body, send)
            finally:
                self._num_requests -= 1
        except ApiError as error:
            await error_response(error, scope)(scope, receive, send)

    async def _forward(self, scope: Scope, body: bytes, send: Send) -> None:
        """Let one replica answer.

        Raises:
            ApiError: None does.
        """
        head, names = request_head(scope), beginnings(scope["state"]["user"], body)
        for _ in range(MOST_TRIES):
            if self._handle is None:
                raise ApiError(503, "no replica is ready", retry_after_s=5)
            is_begun = False
            stream: Any = self._handle.remote(head, body, names)
            try:
                async for piece in stream:
                    if is_begun:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                        continue
                    is_begun, answer = True, orjson.loads(piece)
                    headers = raw_headers(answer["headers"])
                    await send({"type": "http.response.start", "status": answer["status"], "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            except BackPressureError as error:
                raise ApiError(429, "too many requests are waiting", code="queue_full", retry_after_s=5) from error
            except (RayError, RayServeException):
                if is_begun:  # the client sees that its answer is not whole
                    self.metrics.count_error(500)
                    raise
            finally:
                stream.cancel()
        raise ApiError(503, "replicas die before they answer", retry_after_s=1)

    async def _answer_of_all(self, scope: Scope, body: bytes, send: Send) -> None:
        """The first answer of all replicas; an error before others."""
        replies = await self._ask_all(request_head(scope), body)
        if not replies:
            raise ApiError(503, "no replica is ready", retry_after_s=5)
        head, text = max(replies, key=lambda reply: reply[0]["status"])
        await send({"type": "http.response.start", "status": head["status"], "headers": raw_headers(head["headers"])})
        await send({"type": "http.response.body", "body": text})

    async def _metrics(self, scope: Scope) -> Response:
        """Those of all replicas, and of what is refused here."""
        replies = await self._ask_all(request_head(scope), b"")
        texts = [("front", self.metrics.text()), *((head["replica"], text) for head, text in replies)]
        return Response(_joined_metrics(texts), media_type=METRICS_TYPE)

    async def _health(self) -> Json:
        """200 if a replica answers."""
        scope = {"method": "GET", "path": "/health", "query_string": b"", "headers": [], "state": {"user": None}}
        replies = await self._ask_all(request_head(scope), b"")
        told = {head["replica"]: orjson.loads(text) for head, text in replies}
        states = {replica: each["status"] for replica, each in told.items()}
        state = "draining" if self._is_draining else "ready" if "ready" in states.values() else "loading"
        models = next((each["models"] for each in told.values() if each["status"] == state), {})
        return Json({"status": state, "models": models, "replicas": states}, HEALTH_STATUS[state])

    async def _ask_all(self, head: bytes, body: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """What each replica that lives answers."""
        if self._handle is None:
            return []
        try:
            replies = await self._handle.broadcast("whole", head, body).results_async(
                timeout_s=ASK_ALL_S, return_exceptions=True
            )
        except TimeoutError as error:
            raise ApiError(503, "a replica does not answer", retry_after_s=5) from error
        return [(orjson.loads(reply[0]), reply[1]) for reply in replies if not isinstance(reply, BaseException)]

    def _deploy(self) -> DeploymentHandle[Any]:
        wanted = self._settings.replicas
        serve.start(proxy_location="Disabled")
        make_deployment: Any = serve.deployment  # its type is that of a decorator
        deployment = make_deployment(
            Replica,
            name="replica",
            num_replicas=wanted,
            ray_actor_options={"num_cpus": 1},
            max_ongoing_requests=self.limits.requests + ROOM,
            max_queued_requests=self.limits.requests,
            health_check_period_s=HEALTH_PERIOD_S,
            graceful_shutdown_timeout_s=ENDING_S,
            request_router_config=RequestRouterConfig.model_validate({"request_router_class": PrefixRouter}),
        )
        replica = deployment.bind(self._settings.model_dump_json(), wanted if is_own_cluster() else 1)
        handle = serve.run(replica, name=self._application, route_prefix=None)
        return handle.options(method_name="answer", stream=True)

    def _end(self) -> None:
        if not is_own_cluster():
            serve.delete(self._application)
        ray.shutdown()  # and with it a cluster of this machine alone


def make_front_app(front: Front, keys: Keys) -> Starlette:
    """What `make_app` is for one server."""

    app = Starlette(routes=[Mount("", app=front)], lifespan=lambda _app: front.running())
    app.add_middleware(Guard, keys=keys, limits=front.limits, count_error=front.metrics.count_error)
    return app


def _names(request: PendingRequest | None) -> Sequence[bytes]:
    """Of the beginnings of a request to `Replica.answer`."""
    return request.args[2] if request is not None and len(request.args) > 2 else ()


def _joined_metrics(texts: Iterable[tuple[str, bytes]]) -> bytes:
    """Metrics of several replicas, each told apart by the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in texts:
        for found in text_string_to_metric_families(text.decode()):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            family.samples += [
                sample._replace(labels={**sample.labels, "replica": replica}) for sample in found.samples
            ]
    return generate_latest(_Collected(families.values()))


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
