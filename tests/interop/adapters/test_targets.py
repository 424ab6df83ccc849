"""Targets under PyTorch's names: fused and renamed modules become our projections."""

import pytest
from adapter_cases import CASES, make_base

from jaxllm.interop.adapters.targets import in_our_names
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.lora.attach import add_lora
from jaxllm.lora.config import LoraConfig


@pytest.mark.cases(1, exhaustive=1)
@pytest.mark.parametrize(
    ("case", "targets", "full", "found"),
    [
        (
            "transposed kernels",
            ("c_attn", "mlp.down_proj"),
            ("wte", "ln_f"),
            ("attn.k_proj", "attn.q_proj", "attn.v_proj", "mlp.down_proj"),
        ),
        ("llama", ("self_attn.q_proj", "up_proj"), ("norm",), ("attn.q_proj", "mlp.up_proj")),
    ],
)
def test_names_of_modules_are_replaced(case, targets, full, found, tmp_path):
    make_base(CASES[case][0], tmp_path / "base")
    model = load_pretrained(tmp_path / "base")
    lora = in_our_names(LoraConfig(targets=targets, full=full), model)
    names = {name.removeprefix("layers.*.") for name in lora.targets}
    assert {name if "." in name else f"mlp.{name}" for name in names} == set(found)
    assert lora.full == (("embed", "final_norm") if len(full) > 1 else ("final_norm",))
    add_lora(model, lora)


def test_our_own_names_and_unknown_ones_are_kept(tmp_path):
    make_base(CASES["llama"][0], tmp_path / "base")
    model = load_pretrained(tmp_path / "base")
    lora = LoraConfig(targets=("attn.*", "all-linear", "no_such"), full=("embed", "neither"))
    assert in_our_names(lora, model) == lora
