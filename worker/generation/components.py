"""What a drawing takes, once a model is loaded."""

from dataclasses import dataclass

from worker.coordination.inflight import InFlight
from worker.coordination.quota import Quotas
from worker.coordination.resume_tokens import ResumeTokens
from worker.engine import Engine
from worker.generation.imaging import Encoders
from worker.generation.quarantine import Quarantine
from worker.observability.audit import Audit
from worker.observability.metrics import Metrics
from worker.observability.traces import Traces
from worker.storage.gallery_writer import GalleryWriter
from worker.storage.images import Images
from worker.storage.ledger import Ledger
from worker.threads import ThreadPool


@dataclass(frozen=True)
class Components:
    """Built by the service and handed down. ``model`` is the id of the engine's model."""

    engine: Engine
    model: str
    encoders: Encoders
    images: Images
    image_threads: ThreadPool
    """What blocks on ``images`` blocks nothing else."""
    gallery_writer: GalleryWriter
    quarantine: Quarantine
    in_flight: InFlight
    quotas: Quotas
    resume_tokens: ResumeTokens
    ledger: Ledger
    audit: Audit
    metrics: Metrics
    traces: Traces
