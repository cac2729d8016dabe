"""Jobs and their items as rows. Functions of a connection: the caller owns the transaction.

Made and looked at here. ``job_changes`` are made to them, ``job_turns`` says whose are drawn, and
items that are drawn are ``leases``'.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from worker.errors import LimitReached, Refused
from worker.storage import keys, parameters
from worker.storage.database import clock
from worker.storage.locks import lock
from worker.storage.schema import metadata
from worker.types import MODELS_SINCE, PICTURES_SINCE, Parameters

MAX_ITEMS = 10_000
SEEDS = 2**32
JOB_BYTES = 4096
ITEM_BYTES = 512
"""What a job and an item are counted as, without their prompts: row, indexes, picture's name."""
NEVER = 1e18
"""``not_before`` of items whose prompt stands in ``job_prompts``: a worker of a version that does
not know it must not draw them without. Their own time is ``ready_at``."""

JobState = Literal["running", "paused", "cancelled", "completed", "failed"]
ItemState = Literal["waiting", "running", "done", "failed", "cancelled"]
JOB_STATES: tuple[JobState, ...] = ("running", "paused", "cancelled", "completed", "failed")
ITEM_STATES: tuple[ItemState, ...] = ("waiting", "running", "done", "failed", "cancelled")
OPEN = ("waiting", "running")
PRIORITIES = (0, 1)
"""Of jobs, what goes first first."""
AT_ONCE = 500
"""Ids in one query: databases bound them."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("turn", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(32), nullable=False, unique=True),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("state", sa.String(10), nullable=False, index=True),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    *parameters.columns(),
    parameters.needs(),
    sa.Column("output_format", sa.String(8), nullable=False),
    sa.Column("quality", sa.Integer),
    sa.Column("stored_bytes", sa.BigInteger),
    sa.Column("traceparent", sa.String(55)),  # of the request that made it, for its items
    # What its items go on from, by id: of the gallery or of uploads. And how it becomes as large.
    sa.Column("image", sa.String(64)),
    sa.Column("mask", sa.String(64)),
    sa.Column("fit", sa.String(8)),
    sa.Column("position", sa.String(16)),
    # One of several, by its name; NULL: the first, or the only one.
    sa.Column("model", sa.String(100)),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("ix_jobs_owner_created_at", "owner", "created_at"),
    sa.Index("ix_jobs_state_priority_turn_created_at", "state", "priority", "turn", "created_at"),
    sa.Index(
        "ix_jobs_owner_finished_at_stored_bytes_total",
        "owner",
        "finished_at",
        "stored_bytes",
        "total",
    ),
    sa.Index("ix_jobs_created_at_id", "created_at", "id"),
    sa.Index("ix_jobs_finished_at", "finished_at"),
)

prompts = sa.Table(
    "job_prompts",
    metadata,
    sa.Column(
        "job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("prompt", sa.Text, nullable=False),
)

items = sa.Table(
    "job_items",
    metadata,
    sa.Column(
        "job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # Empty where prompt_number names a row of job_prompts: pictures of one prompt share it.
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("not_before", sa.Double, nullable=False),
    # While it is drawn: by which lease, of which process, until when.
    sa.Column("lease", sa.String(64)),
    sa.Column("holder", sa.String(200)),
    sa.Column("lease_until", sa.Double),
    sa.Column("error_code", sa.String(40)),
    sa.Column("error_message", sa.Text),
    sa.Column("image_id", sa.String(64)),
    sa.Column("prompt_number", sa.Integer),
    sa.Column("ready_at", sa.Double),
    sa.Index("ix_job_items_job_id_state_number", "job_id", "state", "number"),
    sa.Index("ix_job_items_job_id_revision", "job_id", "revision"),
    sa.Index(
        "ix_job_items_lease",
        "lease",
        unique=True,
        sqlite_where=sa.text("lease IS NOT NULL"),
        postgresql_where=sa.text("lease IS NOT NULL"),
    ),
)

holds = sa.Table(
    "job_holds",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("until", sa.Double, nullable=False),
)

WITH_PROMPT = items.outerjoin(
    prompts, (prompts.c.job_id == items.c.job_id) & (prompts.c.number == items.c.prompt_number)
)
PROMPT = sa.func.coalesce(prompts.c.prompt, items.c.prompt).label("prompt")

NO_LEASE: Mapping[str, None] = {"lease": None, "holder": None, "lease_until": None}


@dataclass(frozen=True)
class JobSpec:
    """A checked job. ``prompts`` has one for each item; item k is drawn with seed ``first_seed`` +
    k, wrapping. ``digest`` stands for all that was asked. ``image``, ``mask``: ids of pictures to
    go on from, ``fit`` and ``position`` as requests say them; ``undecided``: parameters that the
    picture decides."""

    name: str
    prompts: tuple[str, ...]
    first_seed: int
    parameters: Parameters
    output_format: str
    quality: int | None
    priority: int
    idempotency_key: str | None
    digest: str
    traceparent: str | None = None
    image: str | None = None
    mask: str | None = None
    fit: str | None = None
    position: str | None = None
    undecided: frozenset[str] = frozenset()
    model: str | None = None

    @property
    def needs(self) -> int:
        """The migration that a worker must know to draw it: see ``Parameters.needs``."""
        pictures, models = PICTURES_SINCE if self.image else 0, MODELS_SINCE if self.model else 0
        return max(self.parameters.needs, pictures, models)


@dataclass(frozen=True)
class DrawnModels:
    """The models whose jobs a worker draws, by all names that jobs may call them; ``unnamed``: and
    jobs that name none."""

    names: tuple[str, ...] = ()
    unnamed: bool = True

    def of(self, table: sa.FromClause) -> sa.ColumnElement[bool]:
        """Whether a job in ``table`` is one of them."""
        named = table.c.model.in_(self.names)
        return named | table.c.model.is_(None) if self.unnamed else named


ANY_MODEL = DrawnModels()
"""Of a cell with one: jobs that name none."""


@dataclass(frozen=True)
class Share:
    """What the jobs of one owner may be: open ones, pictures of those that wait or are drawn, and
    bytes of all of them, finished and cancelled ones included."""

    open_jobs: int
    open_images: int
    stored_bytes: int


@dataclass(frozen=True)
class Job:
    """A row of ``jobs`` and how many items it has of each state. Times are seconds since the
    epoch. ``held``: nothing of it is drawn while its owner's key is disabled, expired or deleted,
    or has reached a limit; else empty."""

    id: str
    owner: str
    turn: str
    name: str
    state: JobState
    priority: int
    created_at: float
    finished_at: float | None
    total: int
    revision: int
    parameters: Parameters
    output_format: str
    counts: Mapping[ItemState, int]
    held: str = ""
    image: str | None = None
    mask: str | None = None
    fit: str | None = None
    position: str | None = None
    model: str | None = None

    @property
    def over(self) -> bool:
        return self.state in ("cancelled", "completed", "failed")


_JOB_COLUMNS = [
    *(jobs.c[name] for name in Job.__dataclass_fields__ if name in jobs.c),
    *parameters.columns_of(jobs),
]


# Making


def create(
    connection: sa.Connection,
    wish: JobSpec,
    owner: str,
    turn: str,
    request_id: str,
    now: float,
    share: Share,
) -> Job:
    """The job of this request: made now, or before by a replay or under its idempotency key.

    Raises ``Refused`` where the key was used for something else, ``LimitReached`` where it would
    be more than the owner's ``share``.
    """
    lock_share(connection, owner)
    known = _known(connection, wish, owner, request_id)
    if known is not None:
        return known
    told = list(dict.fromkeys(wish.prompts))
    stored = _stored_bytes(wish, told)
    require_share(connection, owner, share, images=len(wish.prompts), stored_bytes=stored)
    job_id = f"job_{secrets.token_hex(12)}"
    values = {name: value for name, value in vars(wish).items() if name in jobs.c}
    connection.execute(
        jobs.insert().values(
            **values,
            **parameters.values(wish.parameters),
            needs=wish.needs,
            id=job_id,
            owner=owner,
            turn=turn,
            request_id=request_id,
            state="running",
            created_at=now,
            total=len(wish.prompts),
            revision=0,
            stored_bytes=stored,
        )
    )
    numbers = {prompt: k for k, prompt in enumerate(told)}
    rows = [{"job_id": job_id, "number": k, "prompt": prompt} for prompt, k in numbers.items()]
    connection.execute(prompts.insert(), rows)
    connection.execute(items.insert(), list(_new_items(job_id, wish, numbers)))
    return require(connection, job_id)


def _new_items(job_id: str, wish: JobSpec, numbers: Mapping[str, int]) -> Iterable[dict[str, Any]]:
    for k, prompt in enumerate(wish.prompts):
        yield {
            "job_id": job_id,
            "number": k + 1,
            "prompt": "",
            "prompt_number": numbers[prompt],
            "seed": (wish.first_seed + k) % SEEDS,
            "state": "waiting",
            "revision": 0,
            "tries": 0,
            "not_before": NEVER,
            "ready_at": 0.0,
        }


def _stored_bytes(wish: JobSpec, told: Sequence[str]) -> int:
    texts = sum(len(text.encode()) for text in (*told, *wish.parameters.texts.values()))
    return JOB_BYTES + ITEM_BYTES * len(wish.prompts) + texts


def _known(connection: sa.Connection, wish: JobSpec, owner: str, request_id: str) -> Job | None:
    same = jobs.c.request_id == request_id
    if wish.idempotency_key is not None:
        same |= (jobs.c.owner == owner) & (jobs.c.idempotency_key == wish.idempotency_key)
    found = connection.execute(sa.select(jobs.c.id, jobs.c.digest).where(same)).first()
    if found is None:
        return None
    if found.digest != wish.digest:
        raise Refused(
            f"idempotency_key: it belongs to {found.id}, which asked for something else: "
            "use a new key for a new job.",
            param="idempotency_key",
            code="idempotency_key_reused",
        )
    return require(connection, found.id)


def lock_share(connection: sa.Connection, owner: str) -> None:
    """Whoever adds to the owner's jobs does so alone: what counts is what is there then."""
    lock(connection, f"jobs of {owner}")


def require_share(
    connection: sa.Connection, owner: str, share: Share, *, images: int, stored_bytes: int
) -> None:
    """Raise ``LimitReached`` where one more open job would be more than the owner's share."""
    size = sa.func.coalesce(jobs.c.stored_bytes, JOB_BYTES + ITEM_BYTES * jobs.c.total)
    opened = sa.case((jobs.c.finished_at.is_(None), 1), else_=0)
    sums = sa.select(sa.func.sum(opened), sa.func.sum(size)).where(jobs.c.owner == owner)
    open_jobs, stored = (int(found or 0) for found in connection.execute(sums).one())
    if open_jobs >= share.open_jobs:
        raise _too_much(
            f"you have {open_jobs} jobs that are not over and may have {share.open_jobs}: "
            "wait for one, cancel one, or put more pictures into one job"
        )
    if stored + stored_bytes > share.stored_bytes:
        raise _too_much(
            f"your jobs take {stored} bytes, finished and cancelled ones included, this one would "
            f"take {stored_bytes} and all may take {share.stored_bytes}: delete jobs that you no "
            "longer need (their pictures stay)"
        )
    unfinished = connection.scalar(
        sa.select(sa.func.count())
        .select_from(items.join(jobs))
        .where(jobs.c.owner == owner, jobs.c.finished_at.is_(None), items.c.state.in_(OPEN))
    )
    if (unfinished or 0) + images > share.open_images:
        raise _too_much(
            f"{unfinished} pictures of your jobs are waiting, these would be {images} more and "
            f"{share.open_images} may wait: wait for some, or cancel a job"
        )


def _too_much(why: str) -> LimitReached:
    return LimitReached(f"{why[0].upper()}{why[1:]}.", retry_after_s=120.0)


# Looking


def lock_rows(
    connection: sa.Connection, which: sa.ColumnElement[bool], *, wait: bool = True
) -> list[str]:
    """The ids of the jobs that are ``which``: until the transaction ends nobody else changes them
    or their items. Whoever changes items locks their job first, and several in this one order, so
    that no two wait for each other. Without ``wait``, those that nobody has at this moment."""
    found = sa.select(jobs.c.id).where(which).order_by(jobs.c.id)
    return list(connection.scalars(found.with_for_update(skip_locked=not wait)))


def get(connection: sa.Connection, job_id: str) -> Job | None:
    """The job, or None."""
    found = with_counts(connection, select_jobs(clock(connection)).where(jobs.c.id == job_id))
    return found[0] if found else None


def require(connection: sa.Connection, job_id: str) -> Job:
    """The job, which exists."""
    job = get(connection, job_id)
    assert job is not None, job_id
    return job


def page(
    connection: sa.Connection,
    owner: str | None,
    states: Sequence[str],
    limit: int,
    after: str | None,
) -> list[Job]:
    """Jobs of ``owner`` (None: of everybody) in ``states`` (none: in any), newest first, from the
    one behind job ``after`` on."""
    query = select_jobs(clock(connection)).order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if after is not None:
        query = query.where(_behind(connection, after))
    return with_counts(connection, query.limit(limit))


def _behind(connection: sa.Connection, after: str) -> sa.ColumnElement[bool]:
    at: float | None = connection.scalar(sa.select(jobs.c.created_at).where(jobs.c.id == after))
    if at is None:
        return sa.false()
    older = jobs.c.created_at < at
    return older | ((jobs.c.created_at == at) & (jobs.c.id < after))


def is_held(owner: sa.ColumnElement[str], now: float) -> sa.ColumnElement[bool]:
    """Whether ``owner`` may draw nothing for now."""
    return sa.exists().where(holds.c.owner == owner, holds.c.until > now)


def _held(now: float) -> sa.ColumnElement[str]:
    """Why nothing of the job may be drawn; empty where it may."""
    reached = sa.case((is_held(jobs.c.owner, now), "limit"), else_="")
    return sa.func.coalesce(sa.func.nullif(keys.why_not(jobs.c.owner, now), ""), reached)


def select_jobs(now: float) -> sa.Select[Any]:
    """Of ``jobs``, for ``with_counts``. ``now``: by the database's clock."""
    return sa.select(*_JOB_COLUMNS, _held(now).label("held"))


def with_counts(connection: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    """What ``query``, made of ``select_jobs``, finds."""
    rows = connection.execute(query).mappings().all()
    counts: dict[str, dict[ItemState, int]] = {
        row["id"]: dict.fromkeys(ITEM_STATES, 0) for row in rows
    }
    counted = sa.select(items.c.job_id, items.c.state, sa.func.count()).group_by(
        items.c.job_id, items.c.state
    )
    ids = list(counts)
    for k in range(0, len(ids), AT_ONCE):
        some = counted.where(items.c.job_id.in_(ids[k : k + AT_ONCE]))
        for job_id, state, count in connection.execute(some):
            counts[job_id][state] = count
    return [Job(**parameters.gathered(row), counts=counts[row["id"]]) for row in rows]


def pictures_in_use() -> sa.Select[tuple[str]]:
    """Ids of what jobs that are not over draw from."""
    is_open = jobs.c.finished_at.is_(None)
    images = sa.select(jobs.c.image).where(is_open, jobs.c.image.is_not(None))
    masks = sa.select(jobs.c.mask).where(is_open, jobs.c.mask.is_not(None))
    both = images.union_all(masks).subquery()
    return sa.select(both.c.image)
