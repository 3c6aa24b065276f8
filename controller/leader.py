"""One leader among several controllers, by a Lease (coordination.k8s.io/v1).

Only idleness hangs on it: two that lead at once collide on the version of each run's status, and the later one does
nothing. So clocks are not compared: a Lease counts as left when it has not changed for its duration by *our* clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from controller.cluster import ApiError, ApiUnavailable, Cluster, Object, ObjectExists, ObjectMissing, lease_path
from controller.settings import Settings

logger = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """Could not renew in time, or somebody else leads. Stop at once: what we know may be out of date."""


class Leader:
    """Acquires, keeps and gives up the Lease."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` is written into the Lease, for people; `clock` decides."""
        self._cluster = cluster
        self._settings = settings
        self._now = now
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        """resourceVersion of the Lease, and when we first saw it."""
        self._lease: Object | None = None
        self.is_leading = False
        self.alive_at_s = clock()
        """When the last attempt ended; what the probe asks."""

    async def acquire(self) -> None:
        """Return once we lead."""
        while not await self._try(self._take):  # noqa: ASYNC110  (the server is asked anew each time)
            await asyncio.sleep(self._settings.lease_retry_s)
        self.is_leading = True
        logger.info("leading", extra={"identity": self._settings.identity})

    async def keep(self) -> None:
        """Renew for ever.

        Raises:
            LeadershipLost: stop at once.
        """
        renewed_s = self._clock()
        while True:
            await asyncio.sleep(self._settings.lease_retry_s)
            left_s = renewed_s + self._settings.lease_renew_deadline_s - self._clock()
            try:
                async with asyncio.timeout(max(0.0, left_s)):  # not wait_for: controller.reconciler says why
                    is_ours = await self._try(self._renew)
            except TimeoutError:
                is_ours = False
            if is_ours:
                renewed_s = self._clock()
            elif self._is_taken() or self._clock() - renewed_s >= self._settings.lease_renew_deadline_s:
                self.is_leading = False
                raise LeadershipLost(f"the lease {self._settings.lease_name} was not renewed in time, or is another's")

    async def give_up(self) -> None:
        """Leave the Lease, so that the next one need not wait. Best effort."""
        if not self.is_leading or self._lease is None:
            return
        self.is_leading = False
        body = {**self._lease, "spec": {**self._lease["spec"], "holderIdentity": ""}}
        try:
            await self._cluster.update(self._path(), body)
        except (ApiError, ApiUnavailable) as error:
            logger.warning("lease not given up", extra={"detail": str(error)})

    async def _try(self, attempt: Callable[[], object]) -> bool:
        try:
            return bool(await attempt())  # type: ignore[misc]
        except ApiError as error:
            logger.debug("lease not had", extra={"detail": str(error)})
            return False
        except ApiUnavailable as error:
            logger.warning("lease not had", extra={"detail": str(error)})
            return False
        finally:
            self.alive_at_s = self._clock()

    async def _take(self) -> bool:
        try:
            found = await self._cluster.get(self._path())
        except ObjectMissing:
            try:
                self._lease = await self._cluster.create(
                    lease_path(self._settings.lease_namespace),
                    {
                        "apiVersion": "coordination.k8s.io/v1",
                        "kind": "Lease",
                        "metadata": {"name": self._settings.lease_name},
                        "spec": self._spec(0),
                    },
                )
            except ObjectExists:
                return False
            return True
        if not self._is_free(found):
            return False
        self._lease = await self._cluster.update(
            self._path(),
            {**found, "spec": self._spec(int((found.get("spec") or {}).get("leaseTransitions") or 0) + 1)},
        )
        return True

    def _is_free(self, found: Object) -> bool:
        spec, version = found.get("spec") or {}, found["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        duration_s = float(spec.get("leaseDurationSeconds") or self._settings.lease_duration_s)
        holder = spec.get("holderIdentity") or ""
        return holder in {"", self._settings.identity} or self._clock() - self._seen[1] > duration_s

    async def _renew(self) -> bool:
        found = await self._cluster.get(self._path())
        self._lease = found
        if self._is_taken():
            return False
        spec = {**found["spec"], "renewTime": self._stamp()}
        self._lease = await self._cluster.update(self._path(), {**found, "spec": spec})
        return True

    def _is_taken(self) -> bool:
        holder = ((self._lease or {}).get("spec") or {}).get("holderIdentity")
        return holder != self._settings.identity

    def _spec(self, transitions: int) -> Object:
        return {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": round(self._settings.lease_duration_s),
            "acquireTime": self._stamp(),
            "renewTime": self._stamp(),
            "leaseTransitions": transitions,
        }

    def _path(self) -> str:
        return lease_path(self._settings.lease_namespace, self._settings.lease_name)

    def _stamp(self) -> str:
        """MicroTime of the API: six digits, always."""
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
