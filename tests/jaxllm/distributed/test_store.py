"""Texts through the coordinator: alone here; tests of `doctor` have two processes."""

import jax
import pytest

from jaxllm.distributed import store
from jaxllm.distributed.store import exchange_texts


class Client:
    """A key-value store in memory, whose other process has answered or not."""

    def __init__(self, answers: bool):
        self.texts = {"jaxllm/exchange/x/1": "theirs"} if answers else {}

    def key_value_set(self, key: str, text: str) -> None:
        self.texts[key] = text

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        if key not in self.texts:
            raise RuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
        return self.texts[key]


def test_a_process_alone_has_its_own():
    assert exchange_texts("x", "mine") == ["mine"]


def test_texts_are_in_the_order_of_the_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    client = Client(answers=True)
    monkeypatch.setattr(store, "_client", lambda: client)
    assert exchange_texts("x", "mine") == ["mine", "theirs"]


def test_a_process_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    client = Client(answers=False)
    monkeypatch.setattr(store, "_client", lambda: client)
    with pytest.raises(TimeoutError, match="process 1 has not answered within 7 s"):
        exchange_texts("x", "mine", timeout_s=7)
