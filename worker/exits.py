"""Exit codes of a worker, so that supervisor, guard and a person can tell why it ended."""

BAD_SETTINGS = 2
MODEL_FAILED = 70  # the model will not load, or its warm-up drew nothing
DEVICE_POISONED = 71  # a CUDA error that no later call survives: only a new process helps
SOCKET_FAILED = 72  # the listening socket cannot be bound
HELPER_LOST = 73  # the process on another card of this worker has ended or hangs

NAMES = {
    0: "ended in order",
    BAD_SETTINGS: "bad settings",
    MODEL_FAILED: "model failed to load",
    DEVICE_POISONED: "device poisoned",
    SOCKET_FAILED: "socket cannot be bound",
    HELPER_LOST: "the process on another of its cards was lost",
}
