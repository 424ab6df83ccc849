"""Context managers that set an attribute or an environment variable and restore it afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an object or class; on exit, deletes it if it was only inherited."""
    own = vars(target)
    was_own, before = name in own, own.get(name)
    setattr(target, name, value)
    try:
        yield
    finally:
        if was_own:
            setattr(target, name, before)
        else:
            delattr(target, name)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable of this process and restores it on exit."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Within this context, transformers shows no progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
