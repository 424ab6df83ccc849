"""Mixtures of experts with a softmax router in Hugging Face configs and checkpoints."""

from collections.abc import Iterable
from typing import Any

from jaxllm.config import DecoderConfig, ExpertsConfig
from jaxllm.interop.rules.rule import Rule

from .family import Layout
from .fields import REQUIRED, Fields, Json
from .llama_like import layers_with_mlp


def read_expert_layout(stored: Iterable[str]) -> Layout:
    """Detects whether experts are stored one by one or fused per layer, as in transformers 5."""
    is_fused = any(name.endswith(".mlp.experts.down_proj") for name in stored)
    return Layout(experts="fused" if is_fused else "each")


def read_num_experts(fields: Fields, default: int) -> int:
    """Reads the number of experts; transformers 5 renamed `num_experts` to `num_local_experts`."""
    names = ("num_local_experts", "num_experts")
    given = {name: fields.take(name, int, None) for name in names}
    if len(set(given.values()) - {None}) > 1:
        fields.problems.append(" and ".join(f"{name}={given[name]}" for name in names) + " differ")
    return next((count for count in given.values() if count is not None), default)


def read_experts(
    fields: Fields,
    num_experts: int,
    top_k: int,
    *,
    width: str = "moe_intermediate_size",
    mlp_dim: Any = REQUIRED,
    normalize: bool = False,
    has_norm_field: bool = True,
    balance: float = 0.001,
    **others: Any,
) -> ExpertsConfig | None:
    """Reads the experts; None, with a problem, if they cannot be.

    Args:
        fields: the config file.
        num_experts: the default of their number.
        top_k: the default of `num_experts_per_tok`.
        width: the field with the width of an expert.
        mlp_dim: its default.
        normalize: the default of `norm_topk_prob`.
        has_norm_field: whether files have that field; if not, the default always holds.
        balance: the default of the weight of the load-balancing loss.
        others: settings of `ExpertsConfig` that every model of the family has.
    """
    if has_norm_field:
        normalize = fields.take("norm_topk_prob", bool, normalize)
    return fields.build(
        ExpertsConfig,
        num_experts=read_num_experts(fields, num_experts),
        top_k=fields.take("num_experts_per_tok", int, top_k),
        mlp_dim=fields.take(width, int, mlp_dim),
        normalize=normalize,
        **read_balance(fields, balance),
        **others,
    )


def write_experts(
    config: DecoderConfig,
    base: Json,
    *,
    number: str = "num_experts",
    width: str = "moe_intermediate_size",
    normalize: bool = True,
    balance: float = 0.001,
) -> Json:
    """Writes the fields of `read_experts`, with the number of experts in the field `number`."""
    experts = config.experts
    assert experts is not None, "refused otherwise"
    return {
        number: experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        width: experts.mlp_dim,
        **({"norm_topk_prob": experts.normalize} if normalize else {}),
        **write_balance(experts, {"router_aux_loss_coef": balance, **base}),
    }


def read_balance(fields: Fields, default: float = 0.001) -> Json:
    """Reads the load-balancing loss, which counts only if `output_router_logits` is set."""
    weight = fields.take("router_aux_loss_coef", float, default)
    is_used = fields.take("output_router_logits", bool, False)
    return {"aux_weight": weight if is_used else 0.0, "balance": "model"}


def write_balance(experts: ExpertsConfig, base: Json) -> Json:
    """Writes the fields of `read_balance`; a per-layer balancing loss is dropped."""
    weight = experts.aux_weight if experts.balance == "model" else 0.0
    return {
        "output_router_logits": weight > 0,
        "router_aux_loss_coef": weight or base.get("router_aux_loss_coef", 0.001),
    }


def unsupported_by_softmax_experts(
    config: DecoderConfig, *, is_shared: bool = False
) -> dict[str, bool]:
    """Maps expert settings that these families do not support to whether the config has them.

    `is_shared` says that the family has a shared expert with a gate; others have none.
    """
    experts = config.experts
    if experts is None:
        return {"experts=None": True}
    return {
        f"experts.scores={experts.scores!r}": experts.scores != "softmax",
        f"experts.scale={experts.scale!r}": experts.scale != "output",
        "experts.router_bias=True": experts.router_bias,
        f"experts.capacity={experts.capacity}": experts.capacity is not None,
        f"experts.shared_mlp_dim={experts.shared_mlp_dim}": (
            (experts.shared_mlp_dim is not None) != is_shared
        ),
        f"experts.shared_gate={experts.shared_gate}": experts.shared_gate != is_shared,
    }


def expert_rules(
    config: DecoderConfig, layout: Layout, *, under: str, gate: str, up: str, down: str
) -> list[Rule]:
    """Rules for the router and the experts.

    `under`, `gate`, `up` and `down` name the tensors where each expert is stored on its own; fused
    experts have the names that transformers 5 gives them.
    """
    sides = [
        (f"{under}.gate.weight : E D", "router.kernel : D E"),
        (f"{under}.experts.{{E}}.{gate}.weight : X D", "gate_proj.kernel : E D X"),
        (f"{under}.experts.{{E}}.{up}.weight : X D", "up_proj.kernel : E D X"),
        (f"{under}.experts.{{E}}.{down}.weight : D X", "down_proj.kernel : E X D"),
    ]
    if layout.experts == "fused":
        sides = [
            ("mlp.gate.weight : E D", "router.kernel : D E"),
            ("mlp.experts.gate_up_proj : E (G X) D", "{G=gate_proj|up_proj}.kernel : E D X"),
            ("mlp.experts.down_proj : E D X", "down_proj.kernel : E X D"),
        ]
    theirs, ours, layers = (
        "model.layers.{L}.",
        "layers.{L}.mlp.",
        layers_with_mlp(config, "experts"),
    )
    return [Rule(theirs + stored, ours + model, layers=layers) for stored, model in sides]
