"""Rejects encoder-decoder configs that a checkpoint format does not support."""

from collections.abc import Collection, Mapping

from jaxllm.config import TwoStackConfig, flatten

from .unsupported import refuse

# Fields that distinguish the encoder from the decoder.
_ROLES = ("attention.causal", "attention.cross")
# Fields about training, initialization and execution, which do not change the function computed.
_RUN = (
    *("dropout", "init.kind", "init.std", "scan_layers", "remat", "attention.kernel"),
    "norms.sequence_parallel",
)


def refuse_both(
    format_name: str,
    config: TwoStackConfig,
    *supported: str,
    decoder: Collection[str] = (),
    may_differ: Collection[str] = (),
    unsupported: Mapping[str, bool] = {},
) -> None:
    """Raises ValueError, as `refuse` does, if the format does not support one of the stacks.

    Args:
        format_name: the name of the format, for the message.
        config: every field of it that differs from the default must be in `supported`.
        supported: dotted names of the fields that the format supports in both stacks.
        decoder: dotted names of the fields that it supports in the decoder only.
        may_differ: dotted names of the fields that may differ between the stacks.
        unsupported: maps descriptions of unsupported values to whether the config has them.
    """
    encoder_fields, decoder_fields = flatten(config.encoder), flatten(config.decoder)
    differing = {
        f"{name}={encoder_fields[name]!r} in the encoder and {decoder_fields[name]!r} in the "
        "decoder": encoder_fields[name] != decoder_fields[name]
        for name in sorted(encoder_fields.keys() - {*_ROLES, *_RUN, *may_differ})
    }
    differing["share_positions=True"] = (
        config.share_positions and "positions.kind" not in may_differ
    )
    refuse(f"the encoder of {format_name}", config.encoder, (*supported, *_ROLES), {})
    refuse(
        format_name,
        config.decoder,
        (*supported, *_ROLES, *decoder),
        {**differing, **unsupported},
    )
