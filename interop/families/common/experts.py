"""Experts chosen by a softmax, as Hugging Face's configs and checkpoints hold them."""

from collections.abc import Iterable

from jaxllm.config import DecoderConfig, Experts
from jaxllm.interop.rules.rule import Rule

from .family import Fields, Json, Layout
from .llama_like import layers_with_mlp


def read_expert_layout(stored: Iterable[str]) -> Layout:
    """Whether each expert has tensors of its own or, as in transformers 5's memory, a layer has."""
    is_fused = any(name.endswith(".mlp.experts.down_proj") for name in stored)
    return Layout(experts="fused" if is_fused else "each")


def read_num_experts(fields: Fields, default: int) -> int:
    """How many experts: transformers 5 calls them `num_local_experts` where 4 does not."""
    names = ("num_local_experts", "num_experts")
    given = {name: fields.take(name, int, None) for name in names}
    if len(set(given.values()) - {None}) > 1:
        fields.problems.append(" and ".join(f"{name}={given[name]}" for name in names) + " differ")
    return next((count for count in given.values() if count is not None), default)


def read_balance(fields: Fields) -> Json:
    """The load-balancing loss, which is a part of the loss only if the config asks for logits."""
    weight = fields.take("router_aux_loss_coef", float, 0.001)
    is_used = fields.take("output_router_logits", bool, False)
    return {"aux_weight": weight if is_used else 0.0, "balance": "model"}


def write_balance(experts: Experts, base: Json) -> Json:
    """The fields of `read_balance`; each layer's own balance is a loss that they do not know."""
    weight = experts.aux_weight if experts.balance == "model" else 0.0
    return {
        "output_router_logits": weight > 0,
        "router_aux_loss_coef": weight or base.get("router_aux_loss_coef", 0.001),
    }


def unsupported_by_softmax_experts(config: DecoderConfig) -> dict[str, bool]:
    """What these families' experts are not, and whether the config's are."""
    experts = config.experts
    if experts is None:
        return {"experts=None": True}
    return {
        f"Experts.scores={experts.scores!r}": experts.scores != "softmax",
        f"Experts.scale={experts.scale!r}": experts.scale != "output",
        "Experts.router_bias": experts.router_bias,
        f"Experts.capacity={experts.capacity}": experts.capacity is not None,
        f"Experts.shared_mlp_dim={experts.shared_mlp_dim}": experts.shared_mlp_dim is not None,
    }


def expert_rules(
    config: DecoderConfig, layout: Layout, *, under: str, gate: str, up: str, down: str
) -> list[Rule]:
    """The router and the experts, which have these names where each has tensors of its own."""
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
