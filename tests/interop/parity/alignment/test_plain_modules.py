"""Parity of a user's own PyTorch model, with the rules in docs/rules.md."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hf_cases import randomize
from pages import ROOT, shown_files
from tiers import examples
from torch import nn
from torch.nn import functional

from jaxllm.config import DecoderConfig, MlpConfig, PositionConfig, with_fields
from jaxllm.interop import CheckpointError, Rule, load_pretrained
from jaxllm.interop.families import Layout
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.loading import user_family
from jaxllm.interop.parity import Inputs, check_checkpoint, compare
from jaxllm.interop.parity.report.activation_rows import first_wrong
from jaxllm.params import named_parameters, with_arrays

SIZE = {"vocab": 96, "width": 48, "depth": 2, "heads": 6, "kv_heads": 2, "hidden": 80}
FORWARD = ("weights", "config", "logits", "layers")


def write(folder):
    """Writes the page's files and, in `mine`, its model with random weights. Returns the model."""
    for name, text in shown_files(ROOT / "docs" / "rules.md").items():
        (folder / name).write_text(text)
    module = randomize(user_family.resolve_family(folder / "my_rules.py").reference(SIZE))
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text(json.dumps(SIZE))
    torch.save(module.state_dict(), folder / "mine" / "weights.pt")
    return module


@pytest.fixture
def mine(tmp_path):
    write(tmp_path)
    return tmp_path


def check(folder, levels=FORWARD):
    return check_checkpoint(folder / "mine", rules=folder / "my_rules.py", levels=levels)


def edit(folder, old, new):
    file = folder / "my_rules.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.exhaustive
def test_a_correct_model_passes_at_every_activation(mine):
    report = check(mine)
    assert report.ok
    assert report.logits.relative_l2 <= 1e-5
    paths = {tap.path for tap in report.taps}
    assert {"layers.1.attn.q_proj", "layers.1.attn", "layers.1.mlp", "layers.1"} <= paths


@pytest.mark.exhaustive
def test_training_and_generation_levels_pass(mine):
    levels = ["gradients", "step", "generate"]
    assert check(mine, levels).verdicts == dict.fromkeys(levels, True)


@pytest.mark.cases(0)
@pytest.mark.parametrize(
    ("old", "new", "where"),
    examples(
        [
            (' : D (N H)"', ' : (N H) D"', "layers.0.attn"),  # square, so the shape does not tell
            ("{G=gate|up}", "{G=up|gate}", "layers.0.mlp"),
            ('layout="interleaved"', 'layout="half"', "layers.0.attn"),
            ("eps=1e-5)", "eps=1e-3)", "layers.0.attn_norm"),
        ],
        ("{G=gate|up}", "{G=up|gate}", "layers.0.mlp"),
    ),
)
def test_a_wrong_rule_is_caught_at_its_activation(old, new, where, mine):
    edit(mine, old, new)
    report = check(mine, ["logits", "layers"])
    assert not report.ok
    assert report.first_divergence.path.startswith(where)


def write_biased(folder):
    """Gives the attention of the page's model biases, and its rules as well."""
    source = (folder / "my_model.py").read_text()
    before, attention, after = source.partition("class Attention")
    attention += after.replace("bias=False", "bias=True", 2)
    (folder / "my_biased_model.py").write_text(before + attention)
    edit(folder, "from my_model", "from my_biased_model")
    edit(folder, "import DecoderConfig", "import AttentionConfig, DecoderConfig")
    attention = "attention=AttentionConfig(qkv_bias=True, out_bias=True)"
    edit(folder, "norms=", f"{attention},\n        norms=")
    biases = {"attn.wo.bias : D": "attn.o_proj.bias : D"}
    for name, axis in (("q", "N"), ("k", "K"), ("v", "K")):
        biases[f"attn.wqkv.bias#{name} : ({axis} H)"] = f"attn.{name}_proj.bias : {axis} H"
    lines = (f'Rule(theirs + "{one}", ours + "{other}"),' for one, other in biases.items())
    edit(folder, "    return [\n", "    return [\n        " + "\n        ".join(lines) + "\n")
    module = randomize(user_family.resolve_family(folder / "my_rules.py").reference(SIZE))
    torch.save(module.state_dict(), folder / "mine" / "weights.pt")


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('wo.weight : D (N H)"', 'wo.weight : (N H) D"', "layers.0.attn.o_proj"),
        ('#q : (N H) D"', '#q : D (N H)"', "layers.0.attn.q_proj"),
    ],
)
def test_a_transposed_kernel_beside_a_bias_is_named(old, new, where, mine):
    """Attention of a plain module is not recorded, so the input of `wo` is unknown."""
    write_biased(mine)
    assert check(mine, ["logits", "layers"]).ok
    edit(mine, old, new)
    first = check(mine, ["logits", "layers"]).first_divergence
    assert (first.path, first.hint) == (where, "Looks like a transposed square kernel")


def test_the_reference_must_match_the_checkpoint(mine):
    edit(mine, "MyModel(**fields)", "MyModel(**{**fields, 'depth': 3})")
    with pytest.raises(CheckpointError, match=r"blocks\.2\.\S+ is in the reference, but not in"):
        check(mine)
    edit(mine, "'depth': 3", "'depth': 1")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.\S+ is in the checkpoint, but not in"):
        check(mine)
    edit(mine, "'depth': 1", "'hidden': 8")
    with pytest.raises(CheckpointError, match="size mismatch for blocks"):
        check(mine)
    edit(mine, "def reference", "def other")
    with pytest.raises(CheckpointError, match="defines no reference"):
        check(mine)


# From here on, the reference is a module in memory instead of one built by the rules.


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's module with random weights, its JAX model, and the file of its rules."""
    folder = tmp_path_factory.mktemp("page")
    module, rules = write(folder), folder / "my_rules.py"
    return module, load_pretrained(folder / "mine", rules=rules), rules


def tokens(vocab_size=SIZE["vocab"], length=48):
    return np.random.default_rng(0).integers(0, vocab_size, (2, length))


def changed(model, name, function):
    """A bug: one parameter is wrong."""
    arrays = {n: variable.get_value() for n, variable in named_parameters(model).items()}
    return with_arrays(model, {**arrays, name: function(arrays[name])})


def test_a_module_in_memory_passes_and_is_not_changed(page):
    module, model, rules = page
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attributes = set(vars(module))
    levels = [*FORWARD, "gradients", "step"]
    report = compare(module, model, tokens(), rules=rules, levels=levels)
    assert report.ok, report.first_divergence
    assert all(report.rows[level] for level in levels)
    assert set(vars(module)) == attributes
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with pytest.raises(ValueError, match="levels="):
        compare(module, model, tokens(), levels=["layer"], rules=rules)
    assert set(vars(module)) == attributes


def test_a_wrong_weight_is_named_for_a_module_in_memory(page):
    module, model, rules = page
    kernel = "layers.0:2.mlp.down_proj.kernel"
    report = compare(
        module, changed(model, kernel, lambda w: w[:, ::-1]), tokens(), levels=FORWARD, rules=rules
    )
    assert report.verdicts == {"weights": False, "config": True, "logits": False, "layers": False}
    wrong = [(row.path, row.parameter) for row in report.weights if not row.ok]
    assert wrong == [(f"layers.{i}.mlp.down_proj", "kernel") for i in range(2)]
    assert first_wrong(report.taps).path == "layers.0.mlp.down_proj"


def test_a_wrong_forward_pass_is_named_for_a_module_in_memory(page, monkeypatch):
    module, model, rules = page
    mlp = module.blocks[1].mlp

    def with_other_activation(x):
        gate, up = mlp.w12(x).chunk(2, dim=-1)
        return mlp.w3(functional.gelu(gate) * up)

    monkeypatch.setattr(mlp, "forward", with_other_activation)
    report = compare(module, model, tokens(), levels=FORWARD, rules=rules)
    assert report.verdicts == {"weights": True, "config": True, "logits": False, "layers": False}
    assert report.first_divergence.path == "layers.1.mlp.down_proj"
    assert "gelu" in report.first_divergence.hint


def test_the_config_is_read_from_the_file_that_the_model_was_loaded_with(page):
    module, model, rules = page
    other = with_arrays(model, {n: v.get_value() for n, v in named_parameters(model).items()})
    other.config = with_fields(model.config, {"norms.eps": 1e-6})
    report = compare(module, other, tokens(), levels=["config"], rules=rules)
    assert report.first_divergence.path == "config.norms.eps"


def test_a_model_from_elsewhere_takes_its_fields_from_the_rules(page):
    module, model, rules = page
    elsewhere = with_arrays(model, {n: v.get_value() for n, v in named_parameters(model).items()})
    elsewhere.origin = None
    judge = partial(compare, module, elsewhere, tokens(), levels=FORWARD)
    with pytest.raises(CheckpointError, match=r"reads config\.json, but the model was not loaded"):
        judge(rules=rules)
    family = user_family.resolve_family(rules)
    said = SimpleNamespace(
        config=lambda fields: family.read_config(fields, {}) and model.config,
        rules=family.table(model.config, Layout()).rules,
        tied={"head.weight": "tok.weight"},
        fields=SIZE,
    )
    assert judge(rules=said).ok
    constant = SimpleNamespace(config=model.config, rules=said.rules, tied=said.tied)
    assert judge(rules=constant).ok
    with pytest.raises(CheckpointError, match="is not a file"):
        judge(rules="nothing.py")
    with pytest.raises(ValueError, match="a MyModel, which is neither a model of transformers nor"):
        judge()


@pytest.mark.exhaustive
def test_given_rules_take_precedence_over_the_known_family(make_llama, convert):
    """A model of transformers is converted by the given rules, not by its family's."""
    llama = make_llama()
    model = convert(llama)
    table = LLAMA.table(model.config, Layout())

    def judge(rules):
        given = SimpleNamespace(config=model.config, rules=rules, tied=table.tied)
        return compare(llama, model, tokens(), levels=FORWARD, rules=given)

    assert judge(table.rules).ok
    crossed = [
        Rule(dataclasses.replace(rule.stored, name=swap(rule.stored.name)), rule.model)
        for rule in table.rules
    ]
    assert not judge(crossed).verdicts["weights"]


def swap(name):
    """Swaps the names of the two norms of a layer."""
    one, other = "input_layernorm", "post_attention_layernorm"
    return name.replace(one, other) if one in name else name.replace(other, one)


class Told(nn.Module):
    """A model without positions that takes a padding mask as first argument, then tokens."""

    def __init__(self, V=40, D=24, F=32):
        super().__init__()
        self.tok, self.norm = nn.Embedding(V, D), nn.RMSNorm(D, eps=1e-5)
        self.head = nn.Linear(D, V, bias=False)
        linears = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "up": (D, F), "down": (F, D)}
        parts = {name: nn.Linear(*sizes, bias=False) for name, sizes in linears.items()}
        norms = {name: nn.RMSNorm(D, eps=1e-5) for name in ("norm1", "norm2")}
        self.layers = nn.ModuleList([nn.ModuleDict({**parts, **norms})])

    def forward(self, is_token, tokens):
        [layer], x, T = self.layers, self.tok(tokens), tokens.shape[1]
        h = layer["norm1"](x)
        q, k, v = (layer[name](h).unflatten(-1, (3, 8)).transpose(1, 2) for name in "qkv")
        seen = is_token[:, None].bool() & torch.ones(T, T).tril().bool() | torch.eye(T).bool()
        mixed = functional.scaled_dot_product_attention(q, k, v, seen[:, None])
        x = x + layer["o"](mixed.transpose(1, 2).flatten(2))
        x = x + layer["down"](functional.relu(layer["up"](layer["norm2"](x))))
        return self.head(self.norm(x)), "and something else"

    def generate(self, prompt):
        raise NotImplementedError("not that of transformers")


TOLD = SimpleNamespace(
    config=DecoderConfig(
        **{"vocab_size": 40, "embed_dim": 24, "num_layers": 1, "num_heads": 3, "num_kv_heads": 3},
        **{"head_dim": 8, "mlp_dim": 32},
        positions=PositionConfig(kind="none"),
        mlp=MlpConfig(activation="relu", gated=False),
    ),
    rules=[
        Rule("tok.weight : V D", "embed.embedding : V D"),
        *(
            Rule(
                f"layers.{{L}}.{name}.weight : (N H) D",
                f"layers.{{L}}.attn.{name}_proj.kernel : D N H",
            )
            for name in "qkv"
        ),
        Rule("layers.{L}.o.weight : D (N H)", "layers.{L}.attn.o_proj.kernel : N H D"),
        Rule("layers.{L}.up.weight : F D", "layers.{L}.mlp.up_proj.kernel : D F"),
        Rule("layers.{L}.down.weight : D F", "layers.{L}.mlp.down_proj.kernel : F D"),
        Rule("layers.{L}.norm1.weight : D", "layers.{L}.attn_norm.scale : D"),
        Rule("layers.{L}.norm2.weight : D", "layers.{L}.mlp_norm.scale : D"),
        Rule("norm.weight : D", "final_norm.scale : D"),
        Rule("head.weight : V D", "lm_head.kernel : D V"),
    ],
    masks=["target_mask"],
    arguments=lambda module, given: (
        given.get("target_mask", torch.ones_like(given["target"])),
        given["target"],
    ),
)


@pytest.mark.exhaustive
def test_a_module_with_custom_masks_and_arguments_passes(tmp_path):
    module = randomize(Told())
    torch.save(module.state_dict(), tmp_path / "told.pt")
    model = load_pretrained(tmp_path / "told.pt", rules=TOLD)
    mask = np.ones((2, 48), int)
    mask[1, :12] = 0
    padded = Inputs(tokens(40), target_mask=mask)

    def judge(levels=FORWARD, **changes):
        rules = SimpleNamespace(**{**vars(TOLD), **changes})
        return compare(module, model, padded, levels=levels, rules=rules)

    report = judge((*FORWARD, "gradients", "generate"))
    assert report.ok, report.first_divergence
    assert report.tokens == mask.sum()
    unmasked = judge(
        arguments=lambda module, given: (torch.ones_like(given["target"]), given["target"])
    )
    assert (
        unmasked.first_divergence.path == "layers.0.attn.o_proj"
    )  # fused attention, so no scores are recorded
    with pytest.raises(ValueError, match="target_mask hides tokens that the reference, which"):
        judge(masks=())
    with pytest.raises(
        CheckpointError, match=r"masks=\['mask'\] are unknown, allowed are source_mask, target"
    ):
        judge(masks=["mask"])
