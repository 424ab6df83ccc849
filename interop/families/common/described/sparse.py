"""Layers whose experts have a shared one beside them, after some dense layers, in a config file.

The names are those of DeepSeek-V2 and V3 in transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxllm.config import DecoderConfig, ExpertsConfig, GroupsConfig, LayerKind
from jaxllm.interop.families.common.experts import expert_rules
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    require_full_attention,
    shortest_pattern,
    unsupported_layers,
)
from jaxllm.interop.families.common.llama_like import gated_mlp_rules, layers_with_mlp
from jaxllm.interop.rules.rule import Rule

from .part import Part

SHARED = "shared_experts"
# Fields of experts, which files of models without any have as well.
OF_EXPERTS = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"),
    *("routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob"),
    *("scoring_func", "ep_size", "moe_layer_freq", "topk_method"),
)
NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparse:
    """How a family's files give its experts and the number of its dense layers.

    Attributes:
        fixed: settings of `ExpertsConfig` that every model of the family has.
        num_experts: the default of `n_routed_experts`.
        top_k: the default of `num_experts_per_tok`.
        mlp_dim: the default of `moe_intermediate_size`.
        num_shared: the default of `n_shared_experts`.
        weight_scale: the default of `routed_scaling_factor`.
        num_dense: the default of `first_k_dense_replace`.
        normalize: the default of `norm_topk_prob`; None: weights are never normalized.
        groups: the defaults of `n_group` and `topk_group`.
        methods: the score of groups by `topk_method`, the usual one first; None: no groups.
            Empty: there is no such field, and groups are scored by their two best experts.
    """

    fixed: Mapping[str, Any]
    num_experts: int
    top_k: int | None
    mlp_dim: int
    num_shared: int
    weight_scale: float
    num_dense: int
    normalize: bool | None
    groups: tuple[int, int]
    methods: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def read(self, fields: Fields) -> Json:
        """Returns the experts and the kinds of the layers."""
        require_full_attention(fields)
        count = fields.take("num_hidden_layers", int)
        dense = min(fields.take("first_k_dense_replace", int, self.num_dense), count)
        experts = self._read_experts(fields) if dense < count else None
        if dense == count:  # what the file says of experts means nothing
            fields.ignore(*OF_EXPERTS)
        kinds = [LayerKind()] * dense + [LayerKind(mlp="experts")] * (count - dense)
        if dense < count and experts is None:  # and there is a problem
            kinds = [LayerKind()]
        return {"pattern": shortest_pattern(kinds) or (LayerKind(),), "experts": experts}

    def _read_experts(self, fields: Fields) -> ExpertsConfig | None:
        own = () if self.top_k is None else (self.top_k,)
        top_k = fields.take("num_experts_per_tok", int, *own)
        width = fields.take("moe_intermediate_size", int, self.mlp_dim)
        changes = dict(self.fixed)
        if self.normalize is not None:
            changes["normalize"] = fields.take("norm_topk_prob", bool, self.normalize)
        return fields.build(
            ExpertsConfig,
            num_experts=fields.take("n_routed_experts", int, self.num_experts),
            top_k=top_k,
            mlp_dim=width,
            shared_mlp_dim=width * fields.take("n_shared_experts", int, self.num_shared),
            weight_scale=fields.take("routed_scaling_factor", float, self.weight_scale),
            groups=self._read_groups(fields),
            **changes,
        )

    def _read_groups(self, fields: Fields) -> GroupsConfig | None:
        """Returns the groups; one group of all experts is none."""
        score: Any = "two_best"
        if self.methods:
            method = fields.take("topk_method", str, next(iter(self.methods)))
            if method not in self.methods:
                fields.require("topk_method", *self.methods)
            score = self.methods.get(method)
        names = zip(("n_group", "topk_group"), self.groups, strict=True)
        count, top_k = (fields.take(name, int, usual) for name, usual in names)
        if score is None or count == 1:
            return None
        return fields.build(GroupsConfig, count=count, top_k=top_k, score=score)

    def write(self, config: DecoderConfig, base: Json) -> Json:
        """Returns the fields of `read`."""
        experts, dense = config.experts, layers_with_mlp(config, "dense")
        if experts is None:
            return {"first_k_dense_replace": len(dense)}
        groups = experts.groups or GroupsConfig(count=1, top_k=1)
        shared = experts.shared_mlp_dim or 0
        written: Json = {
            "first_k_dense_replace": len(dense),
            "n_routed_experts": experts.num_experts,
            "num_experts_per_tok": experts.top_k,
            "moe_intermediate_size": experts.mlp_dim,
            "n_shared_experts": shared // experts.mlp_dim,
            "routed_scaling_factor": experts.weight_scale,
            "n_group": groups.count,
            "topk_group": groups.top_k,
        }
        if self.normalize is not None:
            written["norm_topk_prob"] = experts.normalize
        if self.methods:
            score = None if experts.groups is None else groups.score
            written["topk_method"] = next(x for x, own in self.methods.items() if own == score)
        return written

    def unsupported(self, config: DecoderConfig) -> dict[str, bool]:
        """Flags layers in another order, and experts of another kind."""
        mlps = [kind.mlp for kind in config.kinds]
        found = {
            **unsupported_layers(config, attention=("full",), rope=("global",)),
            "dense layers after layers with experts": mlps != sorted(mlps),
        }
        experts = config.experts
        if experts is None:
            return found
        usual = {"scale": "output", "router_bias": False, "capacity": None, "shared_gate": False}
        if self.normalize is None:
            usual["normalize"] = False
        for name, value in {**usual, **self.fixed}.items():
            given = getattr(experts, name)
            found[f"experts.{name}={given!r}"] = given != value
        shared, groups = experts.shared_mlp_dim, experts.groups
        is_multiple = shared is not None and shared % experts.mlp_dim == 0
        known = (*self.methods.values(),) if self.methods else ("two_best",)
        found[f"experts.shared_mlp_dim={shared}, no multiple of mlp_dim"] = not is_multiple
        found[f"experts.groups={groups}"] = groups is not None and groups.score not in known
        return found

    @property
    def part(self) -> Part:
        """The part of a config file."""
        return Part(self.read, self.write, ("pattern", "experts"), self.unsupported)


def sparse_rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Rules of the MLP of every layer: dense, or experts with a shared one and a correction."""
    sparse, experts = layers_with_mlp(config, "experts"), config.experts
    rules = gated_mlp_rules(config, layers_with_mlp(config, "dense"))
    if experts is None:
        return rules
    shared = {"theirs": f"mlp.{SHARED}", "ours": "mlp.shared", "width": "S"}
    rules += expert_rules(config, layout, under="mlp", **NAMES)
    rules += gated_mlp_rules(config, sparse, **shared)
    if experts.correction_bias:
        stored = "model.layers.{L}.mlp.gate.e_score_correction_bias : E"
        rules.append(Rule(stored, "layers.{L}.mlp.correction_bias : E", layers=sparse))
    return rules
