"""What is served: a base, the experts that its library has now, and who chooses among them."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Unpack

from dispatch import Dispatcher, Fixed, check_dispatcher, find_dispatcher
from experts.engine import NativeEngine
from experts.engine.continuous import ContinuousBatch, Stopped
from experts.library import ExpertLibrary
from experts.mixture import Mixture
from experts.outside.errors import UserError
from selfadapt.base_models import BUILT_IN, BaseOptions, load_base
from selfadapt.two_pass import default_dispatch, find_library, shipped_with

logger = logging.getLogger(__name__)

Stamp = tuple[int, ...]


class Served:
    """A base in an engine, and the library that it carries, which may change on disk.

    Args:
        library: None where there is none; nothing is then dispatched to.
        dispatch: who chooses for `auto`, as `find_dispatcher` has it.
        base: what the base is called.
        batch: writes the answers; experts in use there stay in the engine.
    """

    def __init__(
        self, engine: NativeEngine, library: ExpertLibrary | None, dispatch: str, base: str, batch: ContinuousBatch
    ) -> None:
        self.engine, self.batch, self.base = engine, batch, base
        self.since = int(time.time())
        self.library = ExpertLibrary(Path(), base, engine.fingerprint, []) if library is None else library
        self.dispatcher: Dispatcher = Fixed(Mixture.of({}))
        self._dispatch = dispatch
        self._changing = RLock()
        self._folder = None if library is None else library.folder
        self._seen: Stamp = ()
        self._carried: dict[str, Stamp] = {name: self._stamp(name) for name in self.library.names}
        self._retired: set[str] = set()  # to be dropped when no answer needs them
        self.refresh()

    @property
    def bases(self) -> Collection[str]:
        """What the base may be called."""
        return (self.base, "base")

    @property
    def names(self) -> list[str]:
        return self.library.names

    def refresh(self) -> None:
        """Takes over the library if its list has changed; if it has not, this costs one look at a file."""
        if self._folder is None:
            return
        with self._changing:
            seen = _stamp(self._folder / "library.json")
            if seen == self._seen and not self._retired:
                return
            try:
                self._take_over(ExpertLibrary.open(self._folder), seen != self._seen)
            except (UserError, OSError, Stopped) as error:  # it is being written, or damaged: keep what was there
                logger.warning(
                    "the library %s cannot be read; its experts are served as before: %s", self._folder, error
                )
            self._seen = seen

    def _take_over(self, library: ExpertLibrary, changed: bool) -> None:
        now = {name: self._stamp(name) for name in library.names}
        self._retired |= {name for name, stamp in self._carried.items() if now.get(name) != stamp}
        for name in self._retired - {*self.batch.in_use()}:
            self.batch.between(partial(self.engine.drop, name))
            self._retired.remove(name)
            del self._carried[name]
            changed = True
        for name in now.keys() - self._carried.keys():
            try:
                self.batch.between(partial(self.engine.carry, name, library.adapter(name)))
                self._carried[name] = now[name]
                changed = True
            except UserError as error:
                logger.warning("the expert %s is not served: %s", name, error)
        if changed:
            names = [name for name in library.names if name in self._carried and name not in self._retired]
            self.library = replace(library, names=names)
            try:
                self.dispatcher = find_dispatcher(self._dispatch, self.library, self.engine)
            except UserError as error:
                self.dispatcher = Fixed(Mixture.of({}))
                logger.warning("auto is answered by the base: %s", error)

    def _stamp(self, name: str) -> Stamp:
        return _stamp(self.library.folder / name / "adapter_model.safetensors")


def _stamp(path: Path) -> Stamp:
    """Tells a file from another in its place; () if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def load_served(
    model: str | None,
    library: str | Path | None,
    dispatch: str | None,
    *,
    rows: int,
    waiting: int,
    **base_options: Unpack[BaseOptions],
) -> Served:
    """A base with the experts of a library, or those that come with it, and `dispatch` or the default for them.

    Raises:
        UserError: as `SelfAdaptiveModel.from_pretrained` does.
    """
    experts = None
    if library is not None or dispatch not in (None, "none"):
        experts = find_library(model, library)
        check_dispatcher(dispatch or "none", experts)
    named = str(model or (BUILT_IN if experts is None else experts.base))
    base, tokenizer = load_base(named, **base_options)
    experts = shipped_with(base) if experts is None else experts
    chosen = dispatch or ("none" if experts is None else default_dispatch(experts))
    engine = NativeEngine(base if experts is None else experts.load(base), tokenizer)
    batch = ContinuousBatch(engine, rows=rows, waiting=waiting)
    return Served(engine, experts, chosen, Path(named).name if Path(named).exists() else named, batch)
