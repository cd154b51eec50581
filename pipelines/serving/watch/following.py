"""The version that answers follows the history: checked, loaded, warmed, swapped.

Whatever the registry does, the last good version goes on answering; what is wrong is said in
`Live.problems`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.registry.history import BEGUN_ANEW
from pipelines.registry.last_seen import (
    Release,
    cached_drift,
    drift_sha256,
    last_seen,
    verified,
)
from pipelines.serving.http.live import Live
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.watch.lines import Challenger, RegistryLook
from pipelines.serving.watch.loading import NotHere, load, load_drift
from pipelines.serving.watch.watching import Silent, Watching

NOT_ASKED = "registry: not asked yet"
_log = logging.getLogger("prong.serve")
_LONGEST_PAUSE = 60.0  # seconds between two tries to load what could not be loaded
_END = 5.0  # seconds that the thread may take to end


@dataclass(frozen=True)
class _NotLoaded:
    """What could not be obeyed.

    Attributes:
        last: The history's newest entry, as it was told.
        error: Why.
        again: When it is tried next, by the monotonic clock.
        pause: Seconds until then.
    """

    last: str
    error: UserError
    again: float
    pause: float


class Following:
    """Keeps a `Live` at what the registry releases, by a thread of its own.

    Attributes:
        watching: The process that asks the registry.
    """

    def __init__(
        self,
        layout: Layout,
        live: Live,
        settings: ServeSettings,
        *,
        on_challenger: Callable[[Challenger | None], None] | None = None,
    ) -> None:
        """Prepare; nothing is asked or loaded yet.

        Args:
            layout: The checkout.
            live: What is to follow.
            settings: Of the server.
            on_challenger: Called, after each look, with the version that the shadow is to ask;
                None if no shadow is wanted.
        """
        self._layout, self._live, self._settings = layout, live, settings
        self._on_challenger = on_challenger
        shadow = on_challenger is not None
        self.watching = Watching(layout, live.name, settings.poll, shadow=shadow)
        self._release: Release | None = None
        self._failed: _NotLoaded | None = None
        self._tried = (0, 0)  # drift graph that was tried after its model: inode and time
        self._first = threading.Event()
        self._error: UserError | None = None
        self._thread = threading.Thread(target=self._follow, name="follow-registry", daemon=True)

    def begin(self) -> None:
        """Load the version that this checkout saw last, or else what the registry says now.

        Raises:
            UserError: If there is nothing to answer from, or it does not run here.
        """
        self._live.problems = (NOT_ASKED,)
        seen = last_seen(self._layout, self._live.name)
        if seen is not None:
            try:
                self._take(seen)
            except NotHere as error:
                _log.warning("not in the cache", extra={"reason": str(error)})
        self._thread.start()
        if self._live.ready:
            return
        self._first.wait()
        if self._error is not None:
            self.end()
            raise self._error

    def end(self) -> None:
        """End the thread and the watching process."""
        self.watching.stop()
        if self._thread.is_alive():
            self._thread.join(_END)

    def _follow(self) -> None:
        for heard in self.watching:
            try:
                self._hear(heard)
            except UserError as error:
                self._error = error
                break
            except Exception as error:  # a bug must not end what keeps the version up to date
                _log.exception("the registry's news could not be used")
                self._say((f"registry: its news could not be used: {type(error).__name__}",))
                if not self._live.ready:
                    self._error = UserError(f"{type(error).__name__}: {error}")
                    break
        self._first.set()

    def _hear(self, heard: RegistryLook | Silent) -> None:
        """Act on what was heard.

        Raises:
            UserError: If nothing answers yet, and nothing can.
        """
        problems = [heard.reason] if isinstance(heard, Silent) else list(heard.problems)
        shown = isinstance(heard, RegistryLook) and bool(heard.last)
        if isinstance(heard, RegistryLook) and heard.last:
            try:
                self._obey(heard)
            except NotHere as error:  # the watching process fetches it again
                problems.append(f"registry: {error}")
            except UserError as error:
                if not self._live.ready:
                    raise
                problems.append(f"registry: {error}")
        if not shown and not self._live.ready:
            raise UserError(f"there is nothing to answer from: {'; '.join(problems)}")
        self._say(tuple(problems))
        if self._on_challenger is not None and isinstance(heard, RegistryLook):
            self._on_challenger(heard.challenger)

    def _say(self, problems: tuple[str, ...]) -> None:
        if problems == self._live.problems:
            return
        level = logging.WARNING if problems else logging.INFO
        _log.log(level, "registry", extra={"problems": problems})
        self._live.problems = problems

    def _obey(self, told: RegistryLook) -> None:
        """Let what the registry says is live answer, unless it does already.

        Raises:
            NotHere: If its file is not in the cache.
            UserError: If it is not signed, goes back behind what was seen, or cannot be loaded.
        """
        before = self._release
        if before is not None and told.last == before.last.text():
            self._add_drift(before)
            return
        if self._failed is not None and told.last == self._failed.last:
            if time.monotonic() < self._failed.again:
                raise self._failed.error
        else:
            self._failed = None
        try:
            self._take(self._checked(told))
            self._failed = None
        except UserError as error:
            pause = 1.0 if self._failed is None else min(2 * self._failed.pause, _LONGEST_PAUSE)
            self._failed = _NotLoaded(told.last, error, time.monotonic() + pause, pause)
            raise

    def _add_drift(self, release: Release) -> None:
        """Let drift be scored too, once its graph has come into the cache after the model."""
        now = self._live.current
        if now.drift is not None or not drift_sha256(release.statement):
            return
        try:
            found = cached_drift(self._layout, drift_sha256(release.statement)).stat()
        except FileNotFoundError:
            return
        if (found.st_ino, found.st_mtime_ns) == self._tried:
            return
        self._tried = found.st_ino, found.st_mtime_ns
        drift = load_drift(self._layout, release, self._settings.max_batch)
        if drift is not None:
            self._live.swap(replace(now, drift=drift))

    def _checked(self, told: RegistryLook) -> Release:
        """Return what was told, if it is signed and nothing older than what was seen.

        Raises:
            UserError: If it is not.
        """
        release = verified(self._layout, self._live.name, told.last, told.entry, told.statement)
        last, before = release.last, self._release
        if before is not None and last.sequence < before.last.sequence and last.event != BEGUN_ANEW:
            raise UserError(
                f"{self._live.name}: the history ends at entry {last.sequence}, after entry "
                f"{before.last.sequence} was seen; it is not obeyed until the server starts anew"
            )
        return release

    def _take(self, release: Release) -> None:
        """Load a version and let it answer; only remember the entry if it answers already.

        Raises:
            NotHere: If its file is not in the cache.
            UserError: If it cannot be loaded.
        """
        statement = release.statement
        now = self._live.current if self._live.ready else None
        if now is None or (now.version, now.sha256) != (statement.version, statement.sha256):
            began = time.monotonic()
            loaded = load(self._layout, release, self._settings)
            seconds = round(time.monotonic() - began, 3)
            self._live.swap(loaded)
            said = {"version": loaded.version, "sha256": loaded.sha256, "seconds": seconds}
            _log.info("loaded", extra={**said, "provider": loaded.model.provider})
        self._release = release
        self._first.set()
