"""PeftModels as references: names, what is refused, every level, and planted bugs."""

import math

import numpy as np
import pytest
from adapter_cases import make_adapter
from flax import nnx
from tiers import examples

from jaxllm.errors import UserError
from jaxllm.interop import CheckpointError
from jaxllm.interop.adapters.merging import load_adapter
from jaxllm.interop.parity import check_checkpoint, compare
from jaxllm.interop.parity.alignment.references.peft_models import base_name, find_scales, opened
from jaxllm.interop.parity.golden import record_checkpoint
from jaxllm.lora.attach import projections

TOKENS = np.random.default_rng(3).integers(1, 64, (2, 40))
CHEAP = ("weights", "config", "logits")
FORWARD = (*CHEAP, "layers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, PEFT's model, and ours, of cases as they are asked for."""
    found = {}

    def make(case: str):
        if case not in found:
            folder = tmp_path_factory.mktemp("adapted")
            changes = {"target_parameters": ["mlp.experts.down_proj"]} if case == "experts" else {}
            theirs = make_adapter(case, folder, **changes)
            found[case] = folder, theirs, load_adapter(folder / "adapter", dtype="float32")
        return found[case]

    return make


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "model.layers.0.self_attn.q_proj.base_layer.weight",
            "model.layers.0.self_attn.q_proj.weight",
        ),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", None),
        ("lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("lm_head.original_module.weight", None),
        ("layers.1.mlp.experts.base_layer.base_layer.down_proj", "layers.1.mlp.experts.down_proj"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_tensors_have_the_names_of_the_base(name, expected):
    assert base_name(name) == expected


@pytest.mark.parametrize(
    "case",
    examples(
        [
            *("llama", "norms and head in full", "tied embedding in full", "experts"),
            *("transposed kernels", "fused q, k and v"),
        ],
        "llama",
    ),
)
def test_the_forward_pass_of_a_peft_model_is_ours(made, case):
    _, theirs, ours = made(case)
    report = compare(theirs, ours, TOKENS, levels=FORWARD)
    assert report.ok, report.verdicts
    assert any(row.path.endswith("lora") for row in report.rows["weights"])
    assert any(row.path.endswith("lora.scale") for row in report.rows["config"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["llama", "norms and head in full", "experts"])
def test_training_a_peft_model_is_training_ours(made, case):
    """Only the adapter: gradients, a step, the curve of 20; and what is generated."""
    _, theirs, ours = made(case)
    before = {name: x.detach().clone() for name, x in theirs.named_parameters()}
    levels = ("gradients", "step", "curve", "generate")
    report = compare(theirs, ours, TOKENS, levels=levels)
    assert report.ok, report.verdicts
    named = [row.path for row in report.rows["gradients"]]
    trained = [name for name in before if "lora_" in name or "modules_to_save" in name]
    full = sum("modules_to_save" in name for name in trained)
    assert sum("lora" in name for name in named) >= len(trained) - full
    assert not any("up_proj.kernel" in name for name in named)
    for name, x in theirs.named_parameters():
        assert np.array_equal(x.detach(), before[name]), name


@pytest.mark.exhaustive
def test_factors_that_peft_shares_are_not_trained_alike(made):
    _, theirs, ours = made("fused q, k and v")
    with pytest.raises(UserError, match=r"qkv_proj.* share a factor in PEFT"):
        compare(theirs, ours, TOKENS, levels=["gradients"])


def changed(model, change):
    """A copy of a model, with a change of each of its low-rank modules."""
    copy = nnx.merge(*nnx.split(model))
    copy.origin = model.origin
    for module in projections(copy).values():
        if module.lora is not None:
            change(module.lora)
    return copy


def ignore_alpha(lora):
    lora.scale = 1.0


def take_the_root(lora):
    """As if the adapter had rslora, or had it not."""
    rank = lora.a.shape[-1]
    lora.scale *= math.sqrt(rank)


def swap(lora):
    a, b = lora.a.get_value(), lora.b.get_value()
    flat = b.reshape(*b.shape[: a.ndim - 2], b.shape[a.ndim - 2], -1)
    lora.a = lora.a.replace(flat.swapaxes(-1, -2).reshape(a.shape))
    lora.b = lora.b.replace(
        a.reshape(*flat.swapaxes(-1, -2).shape).swapaxes(-1, -2).reshape(b.shape)
    )


@pytest.mark.parametrize("bug", [ignore_alpha, take_the_root], ids=lambda bug: bug.__name__)
def test_a_wrong_scale_is_found_in_the_config_and_where_it_first_acts(made, bug):
    _, theirs, ours = made("llama")
    report = compare(theirs, changed(ours, bug), TOKENS, levels=FORWARD)
    assert report.verdicts == {
        "weights": True,
        "config": False,
        "logits": False,
        "layers": False,
    }
    wrong = [row.path for row in report.rows["config"] if not row.ok]
    assert wrong
    assert all(path.endswith(("q_proj.lora.scale", "down_proj.lora.scale")) for path in wrong)
    first = next(row.path for row in report.rows["layers"] if not row.ok)
    assert first.startswith("layers.0.attn.q")


def test_swapped_factors_are_found_among_the_weights(made):
    """Both are 32 x 32 matrices' factors, so that no shape tells."""
    _, theirs, ours = made("norms and head in full")
    report = compare(theirs, changed(ours, swap), TOKENS, levels=CHEAP)
    assert report.verdicts == {"weights": False, "config": True, "logits": False}
    wrong = {row.path for row in report.rows["weights"] if not row.ok}
    assert wrong == {f"layers.{layer}.attn.o_proj.lora" for layer in range(3)}


def test_factors_of_one_side_only_are_found(made):
    folder, theirs, ours = made("llama")
    plain = load_adapter(folder / "adapter", dtype="float32")
    for module in projections(plain).values():
        module.lora = nnx.data(None)
    report = compare(theirs, plain, TOKENS, levels=["weights", "config"])
    remarks = {row.remark for row in report.rows["weights"] if not row.ok}
    assert remarks == {"only in the reference"}
    assert not report.verdicts["config"]
    with theirs.disable_adapter(), pytest.raises(UserError, match="merged or disabled"):
        compare(theirs, ours, TOKENS, levels=["weights"])


def test_what_cannot_be_computed_is_refused(made, tmp_path):
    theirs = make_adapter("llama", tmp_path, use_dora=True)
    _, _, ours = made("llama")
    with pytest.raises(CheckpointError, match="use_dora=True is not supported"):
        compare(theirs, ours, TOKENS)


def test_the_scales_are_those_that_peft_multiplies_by(made):
    _, theirs, ours = made("llama")
    with opened(theirs) as inside:
        scales = set(find_scales(inside).values())
    assert scales == {6 / math.sqrt(4)}
    assert {m.lora.scale for m in projections(ours).values() if m.lora is not None} == scales


def test_an_adapter_folder_is_compared_as_a_checkpoint(made):
    folder, _, _ = made("llama")
    report = check_checkpoint(folder / "adapter", levels=CHEAP, batch_size=1)
    assert report.ok
    assert report.subject == "adapter"
    assert any(row.path.endswith("lora") for row in report.rows["weights"])
    with pytest.raises(UserError, match="compared in memory and in float32, without dtype"):
        check_checkpoint(folder / "adapter", dtype="bfloat16")
    with pytest.raises(UserError, match="of which nothing is recorded"):
        record_checkpoint(folder / "adapter", folder / "pack")
