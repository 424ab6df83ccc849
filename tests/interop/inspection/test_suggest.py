"""Suggests rules for renamed models: nearly all are recovered, and doubts are reported."""

import dataclasses
import random
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hf_cases import CASES
from pages import ROOT, shown_files
from tiers import examples

from jaxllm.interop import CheckpointError, load_pretrained, suggest
from jaxllm.interop.families import FAMILIES, Fields, Layout, RuleTable
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.loading.plan import split_fused
from jaxllm.interop.rules.boxes import slices
from jaxllm.models import build_abstract
from jaxllm.params import stacked_layers

SEEDS = range(20)
LAYERS = [
    *("blocks.{L}.", "layers.{L}.", "transformer.blocks.{L}.", "net.layer.{L}.", "h.{L}."),
    *("decoder.layers.{L}.", "model.block_{L}.", "stack/{L}/"),
]
ATTENTION = ["attn", "attention", "self_attn", "mha", "selfAttention", "att"]
MLP = ["mlp", "ffn", "feed_forward", "ff", "feedForward"]
NORM = ["norm", "ln", "layer_norm", "rmsnorm"]
# Plausible names of each part of a model; siblings are named together.
PROJECTIONS = [
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"},
    {"q": "wq", "k": "wk", "v": "wv", "o": "wo"},
    {"q": "query", "k": "key", "v": "value", "o": "proj"},
    {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out"},
    {"q": "q", "k": "k", "v": "v", "o": "out"},
    {"q": "q_lin", "k": "k_lin", "v": "v_lin", "o": "out_lin"},
    {"q": "Wq", "k": "Wk", "v": "Wv", "o": "Wo"},
    {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "output"},
]
GATED = [
    {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    {"gate": "w1", "up": "w3", "down": "w2"},
    {"gate": "gate", "up": "up", "down": "down"},
    {"gate": "w_gate", "up": "w_up", "down": "w_down"},
    {"gate": "wi_0", "up": "wi_1", "down": "wo"},
    {"gate": "fc_gate", "up": "fc_in", "down": "fc_out"},
]
PLAIN = [
    {"up": "c_fc", "down": "c_proj"},
    {"up": "fc1", "down": "fc2"},
    {"up": "up_proj", "down": "down_proj"},
    {"up": "dense_in", "down": "dense_out"},
    {"up": "w_in", "down": "w_out"},
    {"up": "linear1", "down": "linear2"},
]
NORMS = [
    ("{attn}_{norm}", "{mlp}_{norm}"),
    ("{norm}1", "{norm}2"),
    ("{norm}_1", "{norm}_2"),
    ("input_{norm}", "post_attention_{norm}"),
    ("{norm}_{attn}", "{norm}_{mlp}"),
    ("pre_{attn}_{norm}", "pre_{mlp}_{norm}"),
]
OUTER = [
    {"embed": "embed", "head": "head", "position": "pos_embed"},
    {"embed": "tok_embeddings", "head": "output", "position": "position_embeddings"},
    {"embed": "wte", "head": "lm_head", "position": "wpe"},
    {"embed": "token_emb", "head": "unembed", "position": "pos_emb"},
    {"embed": "embedding", "head": "out_proj", "position": "positional_embedding"},
    {"embed": "word_embeddings", "head": "logits", "position": "positions"},
]
FINAL = ["norm", "final_norm", "ln_f", "norm_f", "final_layernorm", "out_norm"]
HEAD_NORMS = [
    ("q_norm", "k_norm"),
    ("norm_q", "norm_k"),
    ("q_ln", "k_ln"),
    ("query_norm", "key_norm"),
]
LEAF = {"weight": ["weight", "weight", "kernel", "w"], "bias": ["bias", "bias", "b"]}


class Renaming:
    """One random but consistent renaming of the tensors of Llama, Qwen3 and GPT-2."""

    def __init__(self, seed: int):
        pick = random.Random(seed).choice
        attn, mlp, norm, leaves = (
            pick(ATTENTION),
            pick(MLP),
            pick(NORM),
            {k: pick(v) for k, v in LEAF.items()},
        )
        first, second = (text.format(attn=attn, mlp=mlp, norm=norm) for text in pick(NORMS))
        outer, own, gated, plain = pick(OUTER), pick(PROJECTIONS), pick(GATED), pick(PLAIN)
        q_norm, k_norm = pick(HEAD_NORMS)
        qkv = pick(["qkv", "wqkv", "c_attn", "qkv_proj", "query_key_value"])
        self.layers, self.leaves = pick(LAYERS), leaves
        self.modules = {
            "model.embed_tokens": outer["embed"],
            "model.norm": pick(FINAL),
            "lm_head": outer["head"],
            "input_layernorm": first,
            "post_attention_layernorm": second,
            **{f"self_attn.{n}_proj": f"{attn}.{own[n]}" for n in "qkvo"},
            "self_attn.q_norm": f"{attn}.{q_norm}",
            "self_attn.k_norm": f"{attn}.{k_norm}",
            **{f"mlp.{n}_proj": f"{mlp}.{gated[n]}" for n in gated},
            "transformer.wte": outer["embed"],
            "transformer.wpe": outer["position"],
            "transformer.ln_f": pick(FINAL),
            "ln_1": first,
            "ln_2": second,
            "attn.c_attn": f"{attn}.{qkv}",
            "attn.c_proj": f"{attn}.{own['o']}",
            "mlp.c_fc": f"{mlp}.{plain['up']}",
            "mlp.c_proj": f"{mlp}.{plain['down']}",
        }

    def __call__(self, name: str) -> str:
        module, _, leaf = name.rpartition(".")
        layer = re.match(r"(?:model\.layers|transformer\.h)\.(\d+)\.", module)
        prefix = self.layers.replace("{L}", layer[1]) if layer else ""
        inside = module[layer.end() :] if layer else module
        return f"{prefix}{self.modules[inside]}.{self.leaves[leaf]}"


def arrays(table: RuleTable, config, numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Applies the rules to these tensors, layer by layer."""
    bound = table.bound(
        stacked_layers(build_abstract(dataclasses.replace(config, scan_layers=False)))
    )
    parts = dict(numbers)
    fused = {
        name: StoredTensor(name, np.dtype(np.int64), n.shape, "nowhere", 0)
        for name, n in numbers.items()
    }
    for part, place in split_fused(bound, fused).items():
        if "#" in part:
            whole = numbers[part.partition("#")[0]]
            row = place.offset // (8 * whole[0].size)
            parts[part] = whole[row : row + place.shape[0]]
    found = {}
    for rule, sizes in bound:
        transfer = rule.importing(sizes)
        for name, index in transfer.target.names(sizes):
            box = [(0, size) for size in transfer.target.shape(sizes)]
            found[name] = transfer.read(
                index, box, lambda n, b: [(b, parts[n][slices(b)])], np.dtype(np.int64)
            )
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By family: config, true rules, tensors of distinct numbers, and the arrays they give."""
    found = {}
    for name in ("llama", "qwen3", "gpt2"):
        folder = tmp_path_factory.mktemp(name)
        CASES[name].build().save_pretrained(folder)
        config = load_pretrained(folder).config
        family = next(family for family in FAMILIES if family.name == name)
        shapes = {n: t.shape for n, t in CASES[name].build().state_dict().items()}
        if config.head.tied:
            del shapes["lm_head.weight"]
        numbers, start = {}, 0
        for tensor, shape in shapes.items():
            stop = start + shape.numel()
            numbers[tensor] = np.arange(start, stop).reshape(shape)
            start = stop
        table = family.table(config, Layout())
        found[name] = config, table, numbers, arrays(table, config, numbers)
    return found


def recovered(model, seed: int):
    """Returns the arrays filled correctly, the other arrays, and the suggestions."""
    config, table, numbers, expected = model
    rename = Renaming(seed)
    renamed = {rename(name): array for name, array in numbers.items()}
    assert len(renamed) == len(numbers)
    suggestions = suggest(renamed, config)
    rules = tuple(one.rule for one in suggestions.rules)
    labels = {a: len(x) for rule in rules for a, x in rule.model.labels.items()}
    sizes = {**table.sizes, **labels, **suggestions.sizes}
    ours = arrays(RuleTable(rules, sizes), config, renamed)
    right = {n for n in expected if n in ours and np.array_equal(ours[n], expected[n])}
    return right, expected.keys() - right, suggestions


@pytest.mark.parametrize("name", examples(["llama", "qwen3", "gpt2"], "gpt2"))
def test_nearly_all_rules_of_a_renamed_family_are_recovered(name, models):
    counts = []
    for seed in SEEDS:
        right, wrong, suggestions = recovered(models[name], seed)
        fold = lambda names: {re.sub(r"\d+", "L", one) for one in names}  # noqa: E731
        counts.append((len(fold(right)), len(fold(wrong))))
        assert not suggestions.unmatched or wrong, (seed, suggestions.unmatched)
    right, wrong = (sum(column) for column in zip(*counts, strict=True))
    assert right / (right + wrong) >= 0.95


def test_the_layout_of_a_square_matrix_is_reported_as_doubtful(models):
    config, _, numbers, _ = models["llama"]
    config = dataclasses.replace(config, head_dim=8)  # 6 x 8 = 48, the model's width
    shapes = {n: a.shape for n, a in numbers.items()} | {
        f"model.layers.{i}.self_attn.{n}_proj.weight": (48 if n in "qo" else 16, 48)
        for i in range(config.num_layers)
        for n in "qkvo"
    }
    lines = {one.rule.model.name: one for one in suggest(shapes, config).rules}
    for projection, other in (("q", "D (N H)"), ("o", "(N H) D")):
        one = lines[f"layers.{{L}}.attn.{projection}_proj.kernel"]
        assert any(
            "does not determine the layout" in doubt and other in doubt for doubt in one.doubts
        )
    assert not lines["layers.{L}.attn.k_proj.kernel"].doubts
    assert "# ? 48 x 48 does not determine the layout" in str(suggest(shapes, config))


def test_a_square_matrix_follows_the_layout_of_other_kernels(models):
    """GPT-2's output projection is square; all its other kernels are stored as in our model."""
    config, _, numbers, _ = models["gpt2"]
    assert config.num_heads * config.head_dim == config.embed_dim
    lines = {one.rule.model.name: one for one in suggest(numbers, config).rules}
    out = lines["layers.{L}.attn.o_proj.kernel"]
    assert out.rule.stored.text.endswith(": (N H) D")
    assert any("D (N H)" in doubt for doubt in out.doubts)


def test_projections_of_equal_shape_are_told_apart_by_name(models):
    config, _, numbers, _ = models["llama"]
    alike = dataclasses.replace(config, num_kv_heads=6)
    shapes = {
        n: (96, 48) if ".k_proj" in n or ".v_proj" in n else a.shape for n, a in numbers.items()
    }
    lines = {one.rule.model.name: one for one in suggest(shapes, alike).rules}
    for projection in "qkv":
        doubts = lines[f"layers.{{L}}.attn.{projection}_proj.kernel"].doubts
        assert any("N = K" in doubt for doubt in doubts)
    nameless = {re.sub(r"([qkv])_proj", r"matrix_\1x", n): s for n, s in shapes.items()}
    text = str(suggest(nameless, alike))
    assert text.count("about as well") >= 3


def run(text: str, folder: Path) -> dict:
    """Runs a file with this text and returns what it defines."""
    file = folder / "shown.py"
    file.write_text(text)
    return runpy.run_path(str(file))


def test_a_fused_projection_is_split_into_its_parts(tmp_path):
    """The model of docs/rules.md; the page has its true rules."""
    page = shown_files(ROOT / "docs" / "rules.md")
    size = {"vocab": 96, "width": 48, "depth": 3, "heads": 6, "kv_heads": 2, "hidden": 80}
    model = run(page["my_model.py"], tmp_path)["MyModel"](**size)
    mine = run(page["my_rules.py"], tmp_path)
    config = mine["config"](Fields(size))
    true = mine["rules"](config)
    suggestions = suggest(model.state_dict(), config)
    assert suggestions.tied == {"head.weight": "tok.weight"}
    assert not suggestions.unmatched
    assert not suggestions.unfilled
    expected = {rule.stored.text.replace("(G", "(P") for rule in true}
    assert {one.rule.stored.text for one in suggestions.rules} == expected
    assert "# ? fused: assumes the usual order gate_proj, up_proj" in str(suggestions)
    # Tensors that have rules are left alone.
    some = SimpleNamespace(config=config, rules=true[2:], tied=mine["tied"])
    rest = suggest(model.state_dict(), config, rules=some)
    found = {one.rule.model.name for one in rest.rules}
    assert found == {"embed.embedding", "layers.{L}.attn_norm.scale"}


def test_what_is_printed_can_be_pasted(models, tmp_path):
    config, _, numbers, _ = models["gpt2"]
    suggestions = suggest(numbers, config)
    pasted = run(f"from jaxllm.interop import Rule\n{suggestions}", tmp_path)
    assert pasted["rules"] == [one.rule for one in suggestions.rules]
    assert suggestions.sizes == {"M": config.max_len}
    assert pasted["sizes"](config) == {"M": config.max_len}
    longer = dataclasses.replace(config, max_len=2 * config.max_len)
    assert pasted["sizes"](longer) == {"M": longer.max_len}
    assert all(len(line) <= 100 for line in str(suggestions).splitlines() if "#" not in line)


def test_layers_and_experts_become_axes_and_other_numbers_stay(tmp_path):
    original = CASES["mixtral"].build()
    original.save_pretrained(tmp_path / "mixtral")
    config = load_pretrained(tmp_path / "mixtral").config
    suggestions = suggest(tmp_path / "mixtral", config)
    lines = {one.rule.model.name: one.rule.stored.text for one in suggestions.rules}
    experts = "model.layers.{L}.block_sparse_moe.experts.{E}."
    assert lines["layers.{L}.mlp.gate_proj.kernel"] == experts + "w1.weight : F D"
    assert lines["layers.{L}.mlp.up_proj.kernel"] == experts + "w3.weight : F D"
    assert lines["layers.{L}.mlp.down_proj.kernel"] == experts + "w2.weight : D F"
    assert not suggestions.unmatched
    assert not suggestions.unfilled


def test_fused_experts_become_two_projections(tmp_path):
    """As in memory in transformers 5: gate and up fused, one matrix per expert."""
    original = CASES["mixtral"].build()
    original.save_pretrained(tmp_path / "mixtral")
    config = load_pretrained(tmp_path / "mixtral").config
    suggestions = suggest(original.state_dict(), config)
    lines = {one.rule.model.name: one.rule.stored.text for one in suggestions.rules}
    experts = "model.layers.{L}.mlp.experts."
    fused = lines["layers.{L}.mlp.{P=gate|up}_proj.kernel"]
    assert fused == experts + "gate_up_proj : E (P F) D"
    assert lines["layers.{L}.mlp.down_proj.kernel"] == experts + "down_proj : E D F"
    assert not suggestions.unfilled


def test_the_config_defaults_to_that_of_the_folder(models, tmp_path):
    original = CASES["llama"].build()
    original.save_pretrained(tmp_path / "llama")
    assert not suggest(tmp_path / "llama").rules  # a known family: every tensor already has a rule
    torch.save({f"my.{n}": t for n, t in original.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="give the model's config"):
        suggest(tmp_path / "w.pt")
    suggestions = suggest(tmp_path / "w.pt", models["llama"][0])
    assert len(suggestions.rules) == 12
