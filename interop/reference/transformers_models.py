"""Operations that need transformers: build a small Llama, open exported folders, generate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.errors import MissingPackageError


def save_random_llama(fields: Mapping[str, Any], path: str | Path, *, seed: int = 0) -> None:
    """Builds a Llama with random weights from `config.json` fields, and saves it at `path`."""
    torch, transformers = require_torch()
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    model.save_pretrained(path)


def open_exported(path: str | Path) -> tuple[Any, dict[str, list]]:
    """Loads a folder with `AutoModelForCausalLM`.

    Returns the model in eval mode, and the names that transformers reports under "missing_keys"
    and "unexpected_keys".
    """
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
    """Continues each prompt greedily with the model's `generate`, one prompt at a time."""
    torch, _ = require_torch()
    continued = []
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)])
        # Without a mask, transformers would treat every token 0 as padding.
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
    """Returns the modules torch and transformers.

    Raises MissingPackageError, with the extra to install, if one is not installed.
    """
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"this needs PyTorch and transformers, but {error.name} is not installed: "
            "pip install 'jaxllm[torch]'"
        ) from None
    return torch, transformers
