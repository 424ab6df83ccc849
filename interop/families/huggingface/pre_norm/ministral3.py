"""Ministral 3 in the Hugging Face format: Mistral whose queries grow with their positions."""

from jaxllm.config import DecoderConfig, TemperatureConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, setting
from jaxllm.interop.families.common.described.rotary import rope, uniform_window
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import llama_rules
from jaxllm.interop.families.common.rope import PARAMETERS, SCALING

BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
KINDS = ("yarn", "llama3")  # of RoPE scaling, whose parameters have an original length
ROPE = rope()


def read_temperature(fields: Fields) -> Json:
    """Reads RoPE and, from among its parameters, the growth of queries."""
    name = SCALING if fields.data.get(SCALING) else PARAMETERS
    given = Fields(fields.take(name, dict, {}))
    temperature = fields.build(
        TemperatureConfig,
        scale=given.take(BETA, float),
        floor_scale=float(given.take(ORIGINAL, int)),
        offset=0,
        layers="all",
    )
    fields.problems += [f"{name}: {problem}" for problem in given.problems]
    config = ROPE.read(fields)
    scaling = config.get("rope.scaling")
    if scaling is not None and scaling.kind not in KINDS:
        fields.problems.append(f"{name}: rope_type={scaling.kind!r} is not supported, only yarn")
    return {**config, "attention.temperature": temperature}


def write_temperature(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_temperature`."""
    written, temperature = ROPE.write(config, base), config.attention.temperature
    assert temperature is not None, "refused otherwise"
    scaling = {"rope_type": "default", **(written[SCALING] or {})}
    growth = {BETA: temperature.scale, ORIGINAL: int(temperature.floor_scale)}
    return {**written, SCALING: {**scaling, **growth}}


def other_temperature(config: DecoderConfig) -> dict[str, bool]:
    """Flags what the parameters of RoPE cannot say."""
    temperature, scaling = config.attention.temperature, config.rope.scaling
    if temperature is None:
        return {"attention.temperature=None": True}
    original = temperature.floor_scale if scaling is None else scaling.original_max_len
    given = temperature.offset, temperature.layers, temperature.floor_scale
    return {
        f"attention.temperature={temperature}": given != (0, "all", original),
        f"rope.scaling={scaling}": scaling is not None and scaling.kind not in KINDS,
    }


MINISTRAL3 = described_family(
    "ministral3",
    "Ministral3ForCausalLM",
    (
        sizes(262144, kv_heads=8, head_dim=128),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        activation("hidden_act", "silu"),
        Part(
            read_temperature,
            write_temperature,
            (*ROPE.supports, "attention.temperature"),
            other_temperature,
        ),
        uniform_window(),
    ),
    llama_rules,
)
