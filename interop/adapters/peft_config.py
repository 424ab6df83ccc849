"""`adapter_config.json` of PEFT: the fields that say how factors are scaled and where they go."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import ADAPTER
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.untrusted.json_objects import parse_json
from jaxllm.untrusted.regular_files import read_bytes

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of PEFT, before the names of its base model's modules
A, B = ".lora_A.weight", ".lora_B.weight"
NESTED = ".base_layer"  # of a module with several adapted parameters, around all but the last
MAX_BYTES = 10_000_000
# Fields that change what an adapter computes, with the only values that are understood.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "use_bdlora": (None, False),
    "megatron_config": (None,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The fields of an adapter of PEFT that jaxllm reads and writes, under PEFT's names."""

    r: int = 1
    lora_alpha: float = 1
    lora_dropout: float = 0.0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    target_modules: Sequence[str] | str | None = ()
    target_parameters: Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    ensure_weight_tying: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    def scale_of(self, module: str, rank: int) -> float:
        """Returns the scale of a module's factors, whose rank is that of the file."""
        alpha = next(
            (
                value
                for pattern, value in self.alpha_pattern.items()
                if re.match(rf"(.*\.)?({pattern})$", module)
            ),
            self.lora_alpha,
        )
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of the file, with those of PEFT that are the same for all."""
        fixed = {"peft_type": "LORA", "bias": "none", "inference_mode": True}
        return {**fixed, "init_lora_weights": True, **dataclasses.asdict(self)}


def check_peft_fields(fields: Mapping[str, Any], place: str) -> None:
    """Raises CheckpointError for fields of an adapter's config that jaxllm cannot compute."""
    if problems := _problems(fields):
        raise CheckpointError(problems, place)


def _problems(fields: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={fields[name]!r} is not supported, only {allowed[0]!r}"
        for name, allowed in _REQUIRED.items()
        if name in fields and fields[name] not in allowed
    ]


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads the config of an adapter.

    Raises:
        CheckpointError: it is not LoRA, or has what jaxllm cannot compute. Lists every problem.
    """
    path = folder / ADAPTER
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER}: it is not an adapter of PEFT")
    fields = parse_json(read_bytes(path, MAX_BYTES))
    problems = _problems(fields)
    known = {field.name for field in dataclasses.fields(PeftConfig)}
    given = {name: value for name, value in fields.items() if name in known}
    numbers = [given.get(name) for name in ("r", "lora_alpha")]
    if not all(isinstance(value, int | float) and value > 0 for value in numbers):
        problems.append("r and lora_alpha are not both positive numbers")
    for name in ("rank_pattern", "alpha_pattern"):
        given[name] = given.get(name) or {}
    if problems:
        raise CheckpointError(problems, path)
    return PeftConfig(**given)
