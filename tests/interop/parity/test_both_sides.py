"""Both sides of a comparison from one checkpoint: adapters, and runs that are none."""

import peft
import pytest
from adapter_cases import make_adapter

from jaxllm.errors import UserError
from jaxllm.interop.parity import both_sides
from jaxllm.lora.attach import projections


def test_an_adapter_is_opened_with_its_base_on_both_sides(tmp_path):
    make_adapter("llama", tmp_path)
    reference, model = both_sides.open_both(tmp_path / "adapter")
    assert isinstance(reference, peft.PeftModel)
    assert any(module.lora is not None for module in projections(model).values())
    _, given = both_sides.open_both(tmp_path / "adapter", model=model)
    assert given is model


def test_the_adapter_of_a_run_is_written_for_pytorch_first(tmp_path, monkeypatch):
    monkeypatch.setattr(both_sides, "is_adapter", lambda path: True)
    with pytest.raises(UserError, match=r"is a run with LoRA: `jaxllm convert .* --to peft`"):
        both_sides.open_both(tmp_path)
