"""/healthz and /readyz for the kubelet, /metrics for Prometheus.

A watch that has died in silence must end the process: nothing else would tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

logger = logging.getLogger(__name__)


async def serve(
    *,
    address: str,
    port: int,
    is_ready: Callable[[], bool],
    ages_s: Callable[[], Mapping[str, float]],
    limit_s: float,
    metrics: Callable[[], bytes],
) -> web.AppRunner:
    """Serve probes and metrics; `cleanup` the result at the end.

    Args:
        address: to listen on.
        port: 0 = any free one.
        is_ready: whether the process can do its work, or wait to.
        ages_s: how long each watch has been silent.
        limit_s: above this a watch is stale, and /healthz fails.
        metrics: all metrics, in Prometheus' text format.
    """

    async def healthz(_request: web.Request) -> web.Response:
        stale = {name: round(age_s) for name, age_s in ages_s().items() if age_s > limit_s}
        if stale:
            logger.error("stale watches", extra={"silent_s": stale})
            return web.json_response({"stale": stale}, status=503)
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        return web.json_response({"ready": is_ready()}, status=200 if is_ready() else 503)

    async def all_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", all_metrics)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, address, port)
    await site.start()
    logger.info("probes", extra={"addresses": [str(item) for item in runner.addresses]})
    return runner
