"""nima's `GPTModel` (`model_type: nima-gpt`): a decoder with post-norm by default."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Family, Layout, RuleTable, without_type
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import layer_norm_rules
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

from .nima import SUPPORTED, layer_rules, layer_sizes, read_layers, unsupported, waves, write_layers

POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "relative")


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads the constructor's arguments."""
    config = {
        **read_layers(fields, POSITIONS),
        "vocab_size": fields.take("vocab_size", int),
        "num_layers": fields.take("n_layers", int),
        "head.tied": fields.take("tie_weights", bool, True),
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes the constructor's arguments. Raises ValueError for what they do not support."""
    refuse(
        "nima's GPTModel",
        config,
        (*SUPPORTED, "head.tied"),
        {**unsupported(config, POSITIONS), "norms.final=False": not config.norms.final},
    )
    is_default = config.head.tied and "tie_weights" not in base
    return {
        **base,
        "model_type": "nima-gpt",
        "vocab_size": config.vocab_size,
        "n_layers": config.num_layers,
        **write_layers(config, base, POSITIONS),
        **({} if is_default else {"tie_weights": config.head.tied}),
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of the state dict, which also stores a tied head."""
    rules = [
        *layer_rules("layers.{L}", "layers.{L}", config),
        *layer_norm_rules("layer_norm", "final_norm"),
    ]
    if config.head.tied:
        both = "{C=token_embedding|output_projection}.weight : V D"
        rules.append(Rule(both, "embed.embedding : V D", replicated="C"))
    else:
        rules.append(Rule("token_embedding.weight : V D", "embed.embedding : V D"))
        rules.append(Rule("output_projection.weight : V D", "lm_head.kernel : D V"))
    if config.positions.kind == "learned":
        rules.append(Rule("pos_embedding.weight : M D", "embed_position.embedding : M D"))
    sizes = {"L": config.num_layers, "V": config.vocab_size, "C": 2, **layer_sizes(config)}
    return RuleTable(tuple(rules), sizes, derived=waves(config))


def reference(fields: Json) -> Any:
    """Builds the PyTorch reference."""
    from jaxllm.interop.reference.nima.models import GPTModel

    return GPTModel(**without_type(fields))


def arguments(model: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the reference's arguments: tokens and the padding mask."""
    return given["target"], given.get("target_mask")


NIMA_GPT = Family(
    name="nima-gpt",
    format="nima",
    config_file="config.json",
    model_type="nima-gpt",
    read_config=read_config,
    write_config=write_config,
    table=table,
    reference=reference,
    arguments=arguments,
    masks=("target_mask",),
)
