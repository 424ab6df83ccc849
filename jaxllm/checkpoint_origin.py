"""The checkpoint a model was loaded from, kept so that it can be saved in the same format."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that a model was loaded from. Only `jaxllm.interop` reads these fields."""

    family: str
    config: str  # text of its config file, for the fields that do not affect the numbers
    layout: str  # how its tensors were split into files
    directory: str  # holds the tokenizer and generation files
