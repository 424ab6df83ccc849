"""Texts through the coordinator: alone here; tests of `doctor` have two processes."""

from types import SimpleNamespace

import pytest

from jaxllm.distributed import coordinator
from jaxllm.distributed.coordinator import exchange_texts


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


def join(monkeypatch, answers: bool) -> None:
    job = SimpleNamespace(client=Client(answers), process_id=0, num_processes=2)
    monkeypatch.setattr(coordinator, "joined_job", lambda: job)


def test_texts_are_in_the_order_of_the_processes(monkeypatch):
    join(monkeypatch, answers=True)
    assert exchange_texts("x", "mine") == ["mine", "theirs"]


def test_a_process_that_does_not_answer_is_named(monkeypatch):
    join(monkeypatch, answers=False)
    with pytest.raises(TimeoutError, match="process 1 has not answered within 7 s"):
        exchange_texts("x", "mine", timeout_s=7)
