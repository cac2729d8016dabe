"""The errors that a client can see, and their one status table.

ZimageError
├── InvalidRequest      a field is wrong: ``param`` names it, the message says the remedy
│   └── UnknownLora     an adapter that is not here, or not for who asks
├── Unauthenticated     no good key came with it
├── Forbidden           a good key, but not for this; or another site's page
├── LimitReached        over a limit of the key or the address
├── TooLarge            the body is over the limit
├── Refused             understood and declined: it kills workers, or cannot fit the memory
│   └── TooSlow         one call of it lasted beyond four times what its size should take
├── NotFound
├── OtherModel          nginx shall ask the pool of the model that the request names
│   └── OtherHost       a front shall ask the hosts that have it
├── NotOnThisHost       a front that looks for who has the model shall ask the next host
├── Conflict            what it is about is in a state that does not allow it
├── DeadlinePassed      the request's own ``timeout_s`` ran out
├── DrawingFailed       the pipeline failed on this request alone
├── StorageFailed       the picture is drawn or could be, but cannot be stored for its link
└── Unavailable         try again after ``retry_after_s``
    ├── Overloaded      the predicted wait is over ``max_queue_wait_s``, or the queue is full
    ├── NotReady        loading, warming up or stuck
    ├── StoreAway       the database is locked, full, gone or not migrated
    │   └── ObjectsAway the store of pictures cannot be reached, or refuses us
    ├── PictureElsewhere  another host keeps it for the store, which has not taken it yet
    ├── HandedBack      draining: another worker should take it
    └── WorkerFailed    this worker has failed, or lost its memory: another one may draw it

Engine and pipelines raise these and never name an HTTP status.
"""

from collections.abc import Mapping


class ZimageError(Exception):
    """Base of all errors that are answered to a client.

    ``message`` is one sentence for a person, ``param`` the field at fault, ``code`` a stable
    word for programs. ``details`` are for whoever words it anew: ``reason``, and the numbers and
    names of the message.
    """

    code = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: Mapping[str, str | float] | None = None,
    ) -> None:
        super().__init__(message)
        self.details = details
        self.message = message
        self.param = param
        self.code = code or self.code


class InvalidRequest(ZimageError):
    code = "invalid_value"


class UnknownLora(InvalidRequest):
    """``name`` is no adapter here, or none for who asks: nobody can tell which."""

    code = "unknown_lora"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"lora: there is no adapter {name[:80]!r} for you: GET /v1/loras lists those that "
            "there are.",
            param="lora",
        )


class Unauthenticated(ZimageError):
    code = "invalid_api_key"


class Forbidden(ZimageError):
    code = "forbidden"


class LimitReached(ZimageError):
    """Come again after ``retry_after_s`` seconds. ``retry``: clients may do so by themselves;
    otherwise it would only keep a person waiting."""

    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        retry: bool = False,
        param: str | None = None,
        details: Mapping[str, str | float] | None = None,
    ) -> None:
        super().__init__(message, param=param, details=details)
        self.retry_after_s = retry_after_s
        self.retry = retry


class TooLarge(ZimageError):
    code = "request_too_large"


class Refused(ZimageError):
    code = "request_refused"


class TooSlow(Refused):
    code = "too_slow"


class NotFound(ZimageError):
    code = "not_found"


class OtherModel(ZimageError):
    """``pool``: nginx's name of the workers whose the request is."""

    code = "other_model"

    def __init__(self, pool: str, model: str) -> None:
        super().__init__(f"Workers with {model!r} take this: ask through nginx.", param="model")
        self.pool = pool


class OtherHost(OtherModel):
    """``pool``: a front's name of the hosts that have the model."""


class NotOnThisHost(ZimageError):
    code = "other_model"

    def __init__(self, model: str) -> None:
        super().__init__(f"Other hosts have {model!r}: ask through a front.", param="model")


class Conflict(ZimageError):
    code = "wrong_state"


class DeadlinePassed(ZimageError):
    code = "deadline_passed"


class DrawingFailed(ZimageError):
    code = "drawing_failed"


class StorageFailed(ZimageError):
    code = "storage_failed"


class Unavailable(ZimageError):
    """Nothing is wrong with the request; try again after ``retry_after_s`` seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    code = "overloaded"


class NotReady(Unavailable):
    code = "not_ready"


class HandedBack(Unavailable):
    code = "draining"


class WorkerFailed(Unavailable):
    pass


class StoreAway(Unavailable):
    """The database cannot be used now. Every worker has the same one."""

    code = "store_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=5.0)


class ObjectsAway(StoreAway):
    """The store of pictures cannot be used now: all hosts have the same one. ``why`` is for
    operators."""

    code = "pictures_unavailable"

    def __init__(self, why: str) -> None:
        super().__init__("The store of pictures cannot be reached now: try again.")
        self.why = why


class PictureElsewhere(Unavailable):
    """A picture that its host has not brought to the store yet: the next host may be that one."""

    code = "picture_elsewhere"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is not in the store of pictures yet: the host that drew it keeps it until the "
            "store takes it. Try again.",
            retry_after_s=5.0,
        )


# The most specific class wins. 408 and the other 4xx are final for nginx, and so is 507; 500 and
# 503 make it try the next worker, so an error that every worker would repeat must not be one.
STATUS: dict[type[ZimageError], int] = {
    InvalidRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    DeadlinePassed: 408,
    Conflict: 409,
    TooLarge: 413,
    OtherModel: 421,  # no status that nginx asks the next worker for
    NotOnThisHost: 403,  # which counts as no failure of the host
    Refused: 422,
    LimitReached: 429,
    DrawingFailed: 500,
    StorageFailed: 507,
    Unavailable: 503,
    ZimageError: 500,
}


def status_of(error: ZimageError) -> int:
    """HTTP status of ``error``: that of its nearest ancestor in ``STATUS``."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
