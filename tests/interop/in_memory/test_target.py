"""The module that a state dict is for is found, and every difference from it is named."""

from types import SimpleNamespace

import pytest
import torch
from tiny import random_model
from torch import nn

from jaxllm.config import DecoderConfig
from jaxllm.interop import CheckpointError, Rule, from_torch, to_torch
from jaxllm.interop.in_memory.target import check_target, find_target
from jaxllm.interop.loading.model_arrays import arrays_of_model

CONFIG = DecoderConfig(
    vocab_size=20,
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=12,
    max_len=16,
)
LAYER = {
    "q": ("(N H) D", "attn.q_proj.kernel : D N H"),
    "k": ("(K H) D", "attn.k_proj.kernel : D K H"),
    "v": ("(K H) D", "attn.v_proj.kernel : D K H"),
    "o": ("D (N H)", "attn.o_proj.kernel : N H D"),
    "gate": ("F D", "mlp.gate_proj.kernel : D F"),
    "up": ("F D", "mlp.up_proj.kernel : D F"),
    "down": ("D F", "mlp.down_proj.kernel : F D"),
}


class Own(nn.Module):
    """A user's module, with a mask among its buffers."""

    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(20, 8)
        self.norm, self.out = nn.RMSNorm(8), nn.Linear(8, 20, bias=False)
        self.layer = nn.Module()
        self.layer.norm_1, self.layer.norm_2 = nn.RMSNorm(8), nn.RMSNorm(8)
        for name, (dims, _) in LAYER.items():
            rows, columns = (
                12 if "F" in dim else 8
                for dim in dims.replace("(N H)", "N").replace("(K H)", "K").split()
            )
            setattr(self.layer, name, nn.Linear(columns, rows, bias=False))
        self.register_buffer("mask", torch.ones(4, 4).tril())
        for parameter in self.parameters():
            nn.init.normal_(parameter)


RULES = [
    Rule("tok.weight : V D", "embed.embedding : V D"),
    Rule("norm.weight : D", "final_norm.scale : D"),
    Rule("out.weight : V D", "lm_head.kernel : D V"),
    Rule("layer.norm_1.weight : D", "layers.0.attn_norm.scale : D"),
    Rule("layer.norm_2.weight : D", "layers.0.mlp_norm.scale : D"),
    *(
        Rule(f"layer.{name}.weight : {theirs}", f"layers.0.{ours}")
        for name, (theirs, ours) in LAYER.items()
    ),
]


def own_rules(**changes):
    return SimpleNamespace(
        **{"config": CONFIG, "rules": RULES, "ignored": {"mask": "a constant"}, **changes}
    )


@pytest.mark.parametrize("has_reference", [True, False])
def test_rules_of_ones_own_work_in_both_directions(has_reference):
    """With the module's class as reference, the state dict has its buffers too."""
    rules = own_rules(reference=lambda fields: Own()) if has_reference else own_rules()
    module, other = Own(), Own()
    model = from_torch(module, rules=rules)
    state = to_torch(model, rules=rules)
    assert ("mask" in state) == has_reference
    missing, surplus = other.load_state_dict(state, strict=has_reference)
    assert (missing, surplus) == ([] if has_reference else ["mask"], [])
    filled = to_torch(model, into=Own(), rules=rules)
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
        assert torch.equal(filled.state_dict()[name], tensor), name


def test_the_order_of_parameters_is_the_modules():
    rules, model = own_rules(), from_torch(Own(), rules=own_rules())
    arrays = arrays_of_model(model)
    with pytest.raises(CheckpointError, match=r"order of the parameters of rules is unknown: give"):
        _ = find_target(arrays, None, rules, None).parameters
    target = find_target(arrays, Own(), rules, None)
    assert target.parameters == [name for name, _ in Own().named_parameters()]


def test_every_difference_is_named_at_once():
    module = Own()
    module.extra, module.norm = nn.Linear(2, 3), nn.RMSNorm(5)
    module.layer.up.weight = module.layer.gate.weight
    del module.out
    target = find_target(
        arrays_of_model(from_torch(Own(), rules=own_rules())), module, own_rules(), None
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in Own().state_dict().items()}
    shapes.pop("mask")
    with pytest.raises(CheckpointError) as raised:
        check_target(target, shapes)
    assert str(raised.value).splitlines() == [
        "Own:",
        "  extra.weight is in the module, but not in the model",
        "  extra.bias is in the module, but not in the model",
        "  out.weight is in the model, but not in the module",
        "  norm.weight has shape [5] in the module, [8] in the model",
        "  layer.gate.weight and layer.up.weight are one tensor in the module, but not in the "
        "model",
    ]


def test_a_model_that_no_family_expresses_is_refused():
    with pytest.raises(CheckpointError, match="cannot write this model as 'meta'"):
        to_torch(random_model({"mlp.activation": "relu"}), format="meta")
