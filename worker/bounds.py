"""What workers share with what stands before and around them: nginx, guard, commands."""

GIB = 1 << 30

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
UPSCALE = "/v1/images/upscale"
DRAWINGS = (GENERATIONS, EDITS, VARIATIONS, UPSCALE)
"""Where drawings are asked for: what counts them counts them all."""

MAX_SOCKET_PATH_BYTES = 107
"""Linux keeps a unix socket's path in 108 bytes, the last one a zero."""

LATENCY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
"""Of every histogram, so that what clients see can be laid over what workers say."""

MAX_JOB_BODY_BYTES = 8 << 20
"""Of a request that makes a job of up to 10,000 prompts."""

MAX_EDIT_BODY_BYTES = 32 << 20
"""Of a request with a picture to go on from, and its mask."""

MAX_JOB_CHARS = MAX_JOB_BODY_BYTES
"""Of all prompts that a template makes: no more than a list of them could have."""

UNDELIVERED_S = 120.0
"""So long an answer that nobody was there for is kept."""
