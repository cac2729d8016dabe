"""Multipart forms, as browsers and OpenAI's SDK send files. All in memory: a body is bounded."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from worker.api.schemas.fields import bad

MEDIA_TYPE = "multipart/form-data"
MAX_FIELDS = 64
MAX_FILES = 20


@dataclass(frozen=True)
class Parts:
    """By name, in the order in which they came."""

    texts: dict[str, list[str]]
    files: dict[str, list[bytes]]


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40  # nothing of it goes to a disk that may be full


async def parts_of(body: bytes, content_type: str, max_text_bytes: int) -> Parts:
    """What ``body`` carries; ``InvalidRequest`` where it is no such form."""
    try:
        parser = _InMemory(
            Headers({"content-type": content_type}),
            _once(body),
            max_files=MAX_FILES,
            max_fields=MAX_FIELDS,
            max_part_size=max_text_bytes,
        )
        form = await parser.parse()
    except MultiPartException as error:
        bad(None, f"The body is no multipart form ({error.message.rstrip('.')})", "invalid_form")
    except KeyError:
        bad(None, "Content-Type names no boundary of the multipart form", "invalid_form")
    parts = Parts({}, {})
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            parts.files.setdefault(name, []).append(await value.read())
        else:
            parts.texts.setdefault(name, []).append(value)
    await form.close()
    return parts


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
