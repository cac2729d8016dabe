"""Which models a cell has, and which of them is a worker's own."""

from collections.abc import Sequence
from pathlib import Path

from worker.coordination.served_models import ServedModel, ServedModels, ServedModelsFile, pool_of
from worker.storage.jobs import DrawnModels


class CellModels:
    """The models of a cell as one of its workers sees them. ``own``: the name of its model, which
    may be empty where there is no other one. ``id``: what the loaded model calls itself."""

    def __init__(self, path: Path | None, own: str, aliases: Sequence[str] = ()) -> None:
        self._file = None if path is None else ServedModelsFile(path)
        self._alone = ServedModel(own, tuple(aliases))
        self.own = own
        self.id = ""

    @property
    def several(self) -> bool:
        """Whether the cell has several."""
        return self._file is not None

    def served(self) -> ServedModels | None:
        """All of them, as they are now; None of a cell with one."""
        return None if self._file is None else self._file.read()

    def is_own(self, model: ServedModel) -> bool:
        """Whether this worker draws with it."""
        return model.pool == pool_of(self.own)

    def label(self, id: str) -> str:
        """What ledger, metrics, files and jobs call this worker's model, whose own name is ``id``:
        of several, two may have the same weights."""
        return self.own if self.several else id

    def drawn_here(self) -> DrawnModels:
        """Whose jobs this worker draws."""
        served = self.served()
        if served is None:
            names = [self._alone.name, self.id, *self._alone.aliases]
            return DrawnModels(tuple(filter(None, names)), unnamed=True)
        mine = next((model for model in served.all if self.is_own(model)), self._alone)
        return DrawnModels((mine.name, *mine.aliases), unnamed=mine is served.all[0])

    def is_served(self, name: str | None) -> bool:
        """Whether a job whose model is called ``name`` (None: it says none) is drawn by anybody."""
        served = self.served()
        if name is None:
            return True
        if served is None:
            return name in self.drawn_here().names
        return any(name in (model.name, *model.aliases) for model in served.all)
