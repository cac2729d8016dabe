from dataclasses import dataclass, field

from deploy.guard.empty_models import EmptyModels
from deploy.guard.journal import Journal


@dataclass
class Gate:
    is_open: bool = True


@dataclass
class Watched:
    model: str
    gate: Gate = field(default_factory=Gate)


def told(journal: Journal) -> list[str]:
    return [alarm["text"] for alarm in journal.alarms]


def test_model_that_nobody_draws_with_is_told_by_its_name_until_somebody_does() -> None:
    turbo, photo, third = Watched("turbo"), Watched("photo"), Watched("third")
    journal, workers = Journal(), [turbo, photo, third]
    models = EmptyModels(journal, 10.0)
    models.look(workers, 0.0)
    photo.gate.is_open = False
    models.look(workers, 9.0)
    assert told(journal) == []
    models.look(workers, 11.0)
    assert told(journal) == ['no worker with "photo" has been in for 10 s']
    third.gate.is_open = False
    models.look(workers, 25.0)
    assert told(journal) == ['no worker with "photo" and "third" has been in for 10 s']
    photo.gate.is_open = third.gate.is_open = True
    models.look(workers, 26.0)
    assert told(journal) == []


def test_model_that_is_loaded_for_the_first_time_is_no_alarm() -> None:
    journal, workers = Journal(), [Watched("turbo"), Watched("photo", Gate(is_open=False))]
    models = EmptyModels(journal, 10.0)
    for now in (0.0, 100.0):
        models.look(workers, now)
    assert told(journal) == []


def test_empty_pool_is_not_told_once_more_for_each_model() -> None:
    turbo, photo = Watched("turbo"), Watched("photo")
    journal = Journal()
    models = EmptyModels(journal, 10.0)
    models.look([turbo, photo], 0.0)
    turbo.gate.is_open = photo.gate.is_open = False
    models.look([turbo, photo], 100.0)
    assert told(journal) == []
