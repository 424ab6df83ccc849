"""What a spelling of encoder-decoders cannot say, of one stack or the other."""

from collections.abc import Collection, Mapping

from jaxllm.config import TwoStackConfig, flatten

from .family import refuse

# What makes one stack the encoder and the other the decoder.
_ROLES = ("attention.causal", "attention.cross")
# How a stack is run, and where it starts; not what it computes.
_RUN = ("dropout", "init.kind", "init.std", "scan_layers", "remat")


def refuse_both(
    spelling: str,
    config: TwoStackConfig,
    *says: str,
    decoder: Collection[str] = (),
    may_differ: Collection[str] = (),
    holds: Mapping[str, bool] = {},
) -> None:
    """As `refuse`, of both stacks.

    Args:
        spelling: its name, for the message.
        config: of which every field that is not a default must be among `says`.
        says: the dotted names of fields of both stacks.
        decoder: those of fields that only the decoder has.
        may_differ: those of fields that the spelling says of each stack on its own.
        holds: what the spelling cannot say of those fields, and whether the config has it.
    """
    one, other = config.encoder, config.decoder
    ours, theirs = flatten(one), flatten(other)
    differing = {
        f"{name}={ours[name]!r} and {theirs[name]!r}": ours[name] != theirs[name]
        for name in sorted(ours.keys() - {*_ROLES, *_RUN, *may_differ})
    }
    differing["share_positions=True"] = (
        config.share_positions and "positions.kind" not in may_differ
    )
    refuse(f"{spelling}, of the encoder,", one, (*says, *_ROLES), {})
    refuse(spelling, other, (*says, *_ROLES, *decoder), {**differing, **holds})
