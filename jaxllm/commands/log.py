"""What the library says of its progress, for those who wait for it."""

import logging


def log_to_stderr() -> None:
    """Shows what the library says of its progress, and not what its dependencies say."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jaxllm")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
