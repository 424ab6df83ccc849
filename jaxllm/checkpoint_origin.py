"""The checkpoint a model was loaded from, kept so that it can be saved in the same format."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that a model was loaded from. Only `jaxllm.interop` reads what is in it."""

    family: str
    config: str  # its config file, for the fields that do not bear on the numbers
    layout: str  # how its tensors were cut into files
    directory: str  # the tokenizer and generation files are here
