"""What only transformers can do: make a small Llama, open an exported folder, generate with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.interop.formats.stored_tensor import CheckpointError


def save_random_llama(fields: Mapping[str, Any], path: str | Path, *, seed: int = 0) -> None:
    """Builds a Llama of this `config.json` with random weights, and saves it with transformers."""
    torch, transformers = require_torch()
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    model.save_pretrained(path)


def open_exported(path: str | Path) -> tuple[Any, dict[str, list]]:
    """The folder as `AutoModelForCausalLM` reads it, and what was missing or unexpected to it."""
    _, transformers = require_torch()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(path), output_loading_info=True, local_files_only=True
    )
    complaints = {
        kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys")
    }
    return model.eval(), complaints


def generate_greedily(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """The greedy continuation of each prompt, by the model's own `generate`, one at a time."""
    torch, _ = require_torch()
    continued = []
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)])
        # Without a mask, transformers would take every token 0 for padding.
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        continued.append(out[0, len(prompt) :].tolist())
    return continued


def require_torch() -> tuple[Any, Any]:
    """The modules torch and transformers. Raises CheckpointError if they are not installed."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"this needs PyTorch and transformers, and {error.name} is not installed: "
            "pip install 'jaxllm[torch]'"
        ) from None
    return torch, transformers
