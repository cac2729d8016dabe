"""Which models a cell and its cluster have, and which of them is a worker's own."""

from collections.abc import Sequence
from pathlib import Path

from worker.coordination.served_models import ServedModel, ServedModels, ServedModelsFile, pool_of
from worker.storage.jobs import DrawnModels


class CellModels:
    """The models of a cell as one of its workers sees them. ``own``: the name of its model, which
    may be empty where there is no other one. ``id``: what the loaded model calls itself.
    ``cluster``: where those of all hosts are listed."""

    def __init__(
        self,
        path: Path | None,
        own: str,
        aliases: Sequence[str] = (),
        cluster: Path | None = None,
    ) -> None:
        self._file = None if path is None else ServedModelsFile(path)
        self._cluster = None if cluster is None else ServedModelsFile(cluster)
        self._alone = ServedModel(own, tuple(aliases))
        self.own = own
        self.id = ""

    @property
    def several(self) -> bool:
        """Whether the cell has several."""
        return self._file is not None

    @property
    def name(self) -> str:
        """What this worker's model is called in its cluster."""
        return self.own or self.id

    def served(self) -> ServedModels | None:
        """All of them, as they are now; None of a cell with one."""
        return None if self._file is None else self._file.read()

    def of_cluster(self) -> ServedModels | None:
        """Those of all hosts, for requests that come from a front: a name means the same whichever
        host reads it. None where there is but one, and outside of a cluster."""
        served = self.served()
        listed = None if self._cluster is None else self._cluster.read()
        if listed is None:
            return served
        # A model of this host's that others have not heard of yet.
        loaded = (ServedModel(self.name, self._alone.aliases),) if self.name else ()
        pools = {model.pool for model in listed.all}
        own = (m for m in (served.all if served else loaded) if m.pool not in pools)
        found = (*listed.all, *own)
        return None if served is None and len(found) == 1 else ServedModels(found)

    def is_own(self, model: ServedModel) -> bool:
        """Whether this worker draws with it."""
        return model.pool == pool_of(self.name)

    def is_here(self, model: ServedModel) -> bool:
        """Whether this host has it."""
        served = self.served()
        if served is None:
            return self.is_own(model)
        return any(model.pool == each.pool for each in served.all)

    def label(self, id: str) -> str:
        """What ledger, metrics, files and jobs call this worker's model, whose own name is ``id``:
        of several, two may have the same weights."""
        return self.own if self.several else id

    def pool_elsewhere(self) -> str | None:
        """What other hosts call this worker's model; None: they have no other one."""
        return pool_of(self.name) if self.of_cluster() else None

    def of_job(self) -> str | None:
        """The model of a job that is made here; None: whichever draws those that name none."""
        return self.own if self.several else self.name if self.of_cluster() else None

    def drawn_here(self) -> DrawnModels:
        """Whose jobs this worker draws."""
        return self.drawn().get(self.own) or _drawn(self._alone, self.of_cluster())

    def drawn(self) -> dict[str, DrawnModels]:
        """Whose jobs are drawn with each model of the cell, by the model's name."""
        served, known = self.served(), self.of_cluster()
        alone = ServedModel(self.name, (self.id, *self._alone.aliases))
        here = (alone,) if served is None else served.all
        return {self.own if self.is_own(m) else m.name: _drawn(m, known) for m in here}

    def is_served(self, name: str | None) -> bool:
        """Whether a job whose model is called ``name`` (None: it says none) is drawn by anybody."""
        if name is None:
            return True
        known = self.of_cluster()
        if known is None:
            return name in self.drawn_here().names
        return any(name in model.names for model in known.all)


def _drawn(model: ServedModel, known: ServedModels | None) -> DrawnModels:
    """Whose jobs are drawn with ``model``. ``known``: all models; None where it is the only one."""
    names = tuple(filter(None, model.names))
    if known is None:
        return DrawnModels(names, unnamed=True)
    # Another host may call a model of its own by a name that is an alias here.
    meant = ((name, known.asked(name)) for name in names)
    own = tuple(name for name, found in meant if found is None or found.pool == model.pool)
    return DrawnModels(own, unnamed=known.all[0].pool == model.pool)
