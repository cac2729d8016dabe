"""The gallery's rows: one a picture, with what it was drawn from. Their files: ``images.py``.

The functions are work for ``Database.run`` and ``Database.read``, to be joined with other work of
the same transaction. A row is written only after its file is safe on the disk.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from worker.storage import parameters, search
from worker.storage.images import day
from worker.storage.jobs import jobs
from worker.storage.schema import insert_or, metadata
from worker.types import DrawSpec, Parameters

_SEED = re.compile(r"#?([0-9]{1,10})")
_MOST_JOBS = 100

images = sa.Table(
    "images",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("words", sa.Text, nullable=False),  # the prompt as ``search.searchable`` makes it
    sa.Column("seed", sa.BigInteger, nullable=False),
    *parameters.columns(),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("format", sa.String(8), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("favourite", sa.Boolean, nullable=False),
    sa.Column("job_id", sa.String(64)),
    sa.Column("job_number", sa.Integer),
    # Of what it was drawn from, in hex.
    sa.Column("image_sha256", sa.String(64)),
    sa.Column("mask_sha256", sa.String(64)),
    sa.Column("drawn_from", sa.Text),  # JSON, see ``SourceImage.drawn_from``
    sa.Index(None, "owner", "created_at", "id"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "job_id", "job_number"),
)


@dataclass(frozen=True)
class StoredImage:
    """One picture of the gallery. ``created_at``: seconds since the epoch, of a request its
    arrival, so that a replay stores the same row and file. ``job_number`` is its place in the job.
    The digests are those of what it was drawn from; ``drawn_from`` as ``SourceImage`` has it.
    """

    id: str
    owner: str
    created_at: float
    prompt: str
    seed: int
    parameters: Parameters
    model: str
    format: str
    bytes: int
    favourite: bool = False
    job_id: str | None = None
    job_number: int | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    drawn_from: Mapping[str, str] | None = None

    @classmethod
    def of(cls, spec: DrawSpec, **rest: Any) -> "StoredImage":
        """What was drawn as ``spec`` says; ``rest`` are the fields that it does not have."""
        own: dict[str, Any] = {
            "prompt": spec.prompt,
            "seed": spec.seed,
            "parameters": spec.parameters,
        }
        if spec.source is not None:
            own |= spec.source.digests | {"drawn_from": spec.source.drawn_from or None}
        return cls(**own, **rest)

    @property
    def name(self) -> str:
        """Of its file, for ``ImageStore``."""
        return _name(self.id, self.created_at, self.format)


def _name(id: str, created_at: float, format: str) -> str:
    return f"{day(created_at)}/{id}.{format}"


@dataclass(frozen=True)
class Wanted:
    """Which pictures ``page`` looks for. ``owner`` None: everybody's; ``words``: each of them
    stands in the prompt or the name of the job, or is the seed; ``after``: the id of the last
    picture of the page before."""

    owner: str | None = None
    words: tuple[str, ...] = ()
    favourite: bool | None = None
    job_id: str | None = None
    after: str | None = None
    limit: int = 50


def insert(connection: sa.Connection, *pictures: StoredImage) -> None:
    """Add rows; a picture that has one keeps it as it is."""
    fresh = {picture.id: _row(picture) for picture in pictures}
    if fresh:
        rows = [fresh[id] for id in sorted(fresh)]
        connection.execute(insert_or(images).on_conflict_do_nothing(), rows)


def _row(picture: StoredImage) -> dict[str, Any]:
    own = {name: value for name, value in vars(picture).items() if name in images.c}
    told = {
        "words": search.searchable(picture.prompt),
        "drawn_from": json.dumps(picture.drawn_from) if picture.drawn_from else None,
    }
    return {**own, **parameters.values(picture.parameters), **told}


def find(connection: sa.Connection, id: str) -> StoredImage | None:
    """The picture called ``id``, whosever it is."""
    row = connection.execute(sa.select(*_fields()).where(images.c.id == id)).one_or_none()
    return None if row is None else _picture(row)


def named(connection: sa.Connection, ids: Collection[str]) -> list[StoredImage]:
    """The pictures called ``ids``, as far as there are such."""
    rows = connection.execute(sa.select(*_fields()).where(images.c.id.in_(ids)))
    return [_picture(row) for row in rows]


def names(connection: sa.Connection) -> list[str]:
    """Of the files of all pictures; none where the table was not made yet."""
    if not sa.inspect(connection).has_table(images.name):
        return []
    rows = connection.execute(sa.select(images.c.id, images.c.created_at, images.c.format))
    return [_name(*row) for row in rows]


def page(connection: sa.Connection, wanted: Wanted) -> list[StoredImage]:
    """At most ``limit`` pictures, newest first; those of one request in their order."""
    also = [_named_by(connection, wanted.owner, word) for word in wanted.words]
    # The index knows prompts alone.
    words = [search.searchable(w) for w, by in zip(wanted.words, also, strict=True) if by is None]
    found = search.candidates(connection, words) if words else None
    query = sa.select(*_fields()).where(*_conditions(wanted, also))
    if found is not None:
        query = query.where(images.c.id.in_(found))
    if wanted.after is not None:
        last = find(connection, wanted.after)
        if last is None:
            return []
        query = query.where(_behind(last))
    query = query.order_by(images.c.created_at.desc(), images.c.id).limit(wanted.limit)
    return [_picture(row) for row in connection.execute(query)]


def _named_by(
    connection: sa.Connection, owner: str | None, word: str
) -> sa.ColumnElement[bool] | None:
    """Pictures that ``word`` names in another way than by their prompts: by their seed or the name
    of their job. None where it cannot be one."""
    job = jobs.c.name.icontains(word, autoescape=True)
    if owner is not None:
        job &= jobs.c.owner == owner
    found = connection.scalars(sa.select(jobs.c.id).where(job).limit(_MOST_JOBS)).all()
    conditions: list[sa.ColumnElement[bool]] = [images.c.job_id.in_(found)] if found else []
    if seed := _SEED.fullmatch(word):
        conditions.append(images.c.seed == int(seed[1]))
    return sa.or_(*conditions) if conditions else None


def _conditions(
    wanted: Wanted, also: Sequence[sa.ColumnElement[bool] | None]
) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    for word, named in zip(wanted.words, also, strict=True):
        said = images.c.words.contains(search.searchable(word), autoescape=True)
        conditions.append(said if named is None else said | named)
    if wanted.owner is not None:
        conditions.append(images.c.owner == wanted.owner)
    if wanted.favourite is not None:
        conditions.append(images.c.favourite == wanted.favourite)
    if wanted.job_id is not None:
        conditions.append(images.c.job_id == wanted.job_id)
    return conditions


def _behind(last: StoredImage) -> sa.ColumnElement[bool]:
    """What comes after ``last``."""
    older = images.c.created_at < last.created_at
    return older | ((images.c.created_at == last.created_at) & (images.c.id > last.id))


def mark(connection: sa.Connection, id: str, favourite: bool) -> None:
    """Make a picture a favourite, or none."""
    connection.execute(images.update().where(images.c.id == id).values(favourite=favourite))


def delete(connection: sa.Connection, ids: Collection[str]) -> None:
    """Forget pictures; their files go after the commit."""
    connection.execute(images.delete().where(images.c.id.in_(ids)))


def known(connection: sa.Connection, ids: Collection[str]) -> set[str]:
    """Which of ``ids`` are pictures."""
    return set(connection.scalars(sa.select(images.c.id).where(images.c.id.in_(ids))))


def _fields() -> list[sa.Column[Any]]:
    return [column for column in images.c if column.name != "words"]


def _picture(row: sa.Row[Any]) -> StoredImage:
    told = row._mapping["drawn_from"]
    own = parameters.gathered(row._mapping)
    return StoredImage(**{**own, "drawn_from": json.loads(told) if told else None})
