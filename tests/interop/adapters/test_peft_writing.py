"""PEFT adapters written: `peft` loads them, logits are equal, and the same bits come back."""

import numpy as np
import peft
import pytest
from adapter_cases import CASES, logits_of, make_adapter, open_base, our_logits
from safetensors.numpy import load_file

from jaxllm.interop import load_pretrained
from jaxllm.interop.adapters.merging import load_adapter, open_adapter
from jaxllm.interop.adapters.peft_writing import short_names, write_adapter
from jaxllm.interop.conversion.convert import convert

LIMIT = 1e-5  # of the difference of logits, which are up to 5


@pytest.mark.cases(2, exhaustive=4)
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_goes_both_ways(case, tmp_path):
    """In: logits as PEFT's, beside the kernels and merged. Out: the same bits, and peft loads."""
    theirs = make_adapter(case, tmp_path)
    expected = logits_of(theirs)
    assert np.abs(expected - logits_of(open_base(tmp_path / "base"))).max() > 100 * LIMIT
    ours = load_adapter(tmp_path / "adapter")
    assert np.abs(our_logits(ours) - expected).max() < LIMIT
    base = load_pretrained(tmp_path / "base")
    write_adapter(open_adapter(tmp_path / "adapter", base), base, tmp_path / "out")
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "out")
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    back = peft.PeftModel.from_pretrained(open_base(tmp_path / "base"), tmp_path / "out").eval()
    np.testing.assert_array_equal(logits_of(back), expected)
    convert(tmp_path / "adapter", tmp_path / "merged", merge=True)
    assert np.abs(logits_of(open_base(tmp_path / "merged")) - expected).max() < LIMIT


@pytest.mark.exhaustive
def test_projections_of_a_fused_tensor_with_other_factors_add_up_their_ranks(tmp_path):
    """Training sets q, k and v apart, where PEFT has one `a`: the product stays the same."""
    make_adapter("fused q, k and v", tmp_path)
    base = load_pretrained(tmp_path / "base")
    adapter = open_adapter(tmp_path / "adapter", base)
    rng = np.random.default_rng(3)
    for x in adapter.arrays.values():
        x[...] = 0.2 * rng.standard_normal(x.shape)
    write_adapter(adapter, base, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(open_base(tmp_path / "base"), tmp_path / "out").eval()
    found = our_logits(load_adapter(tmp_path / "out"))
    assert np.abs(logits_of(theirs) - found).max() < LIMIT
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {name.split(".")[-3]: x.shape[0] for name, x in stored.items() if "lora_A" in name}
    assert ranks == {"qkv_proj": 12, "gate_up_proj": 8, "o_proj": 4, "down_proj": 4}


def test_short_names_name_no_other_module():
    modules = ["a.0.mlp.up", "a.1.mlp.up", "a.0.x.up", "head"]
    assert short_names(["head"], modules) == ["head"]
    assert short_names(modules[:2], modules) == ["mlp.up"]
    assert short_names(modules[:1], modules) == ["0.mlp.up"]
