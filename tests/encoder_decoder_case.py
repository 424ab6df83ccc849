"""Tiny random Hugging Face encoder-decoders, and padded sources and targets for them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from hf_case import LENGTH, randomize

from jaxllm.models import EncoderDecoder


@dataclasses.dataclass(frozen=True)
class Case:
    """A transformers config: the prefix of its class and its arguments."""

    prefix: str
    arguments: Mapping[str, Any]
    has_own_head: bool = False  # untied head; transformers 5 ties it whatever the config says
    written_as: str = ""  # the model_type on export, if it is a more general one
    model_class: str = ""  # by default the prefix and "ForConditionalGeneration"

    def build(self) -> torch.nn.Module:
        """Builds the model with random numbers in every tensor; no norm scale is 1."""
        config = getattr(transformers, f"{self.prefix}Config")(
            **self.arguments, attn_implementation="eager"
        )
        name = self.model_class or f"{self.prefix}ForConditionalGeneration"
        model = getattr(transformers, name)(config)
        if self.has_own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(3)))
        return calm(randomize(model)).eval()


def calm(model: torch.nn.Module) -> torch.nn.Module:
    """Scales T5's query weights by 1/sqrt(H), as its own initialization does.

    T5 does not scale attention scores. With larger scores, transformers in float32 has an error of
    1.3e-5 against itself in float64, so no implementation could meet a smaller tolerance.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                parameter.mul_(model.config.d_kv**-0.5)
    return model


class Inputs(NamedTuple):
    """Tokens and their masks, which are 0 at padding; rows are right-padded to `LENGTH`."""

    src_BS: np.ndarray
    tgt_BT: np.ndarray
    is_src_BS: np.ndarray
    is_tgt_BT: np.ndarray


def inputs_of(model: torch.nn.Module, seed: int = 1) -> Inputs:
    """Draws random tokens in rows of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = {"src": (LENGTH, 203, 1), "tgt": (171, LENGTH, 250)}
    tokens = {name: rng.integers(0, model.config.vocab_size, (3, LENGTH)) for name in lengths}
    if any(hasattr(part, "create_position_ids_from_input_ids") for part in model.modules()):
        padding = model.config.pad_token_id  # has no position in such a model
        tokens = {name: np.where(rows == padding, 0, rows) for name, rows in tokens.items()}
    masks = {
        name: (np.arange(LENGTH) < np.array(own)[:, None]).astype(np.int32)
        for name, own in lengths.items()
    }
    return Inputs(tokens["src"], tokens["tgt"], masks["src"], masks["tgt"])


def logits_of_original(model: torch.nn.Module, inputs: Inputs) -> np.ndarray:
    """The logits of transformers, (B, T, V)."""
    src, tgt, is_src, is_tgt = map(torch.tensor, inputs)
    with torch.no_grad():
        out = model(
            input_ids=src,
            decoder_input_ids=tgt,
            attention_mask=is_src,
            decoder_attention_mask=is_tgt,
            use_cache=False,
        )
    return out.logits.numpy()


def logits_of(model: EncoderDecoder, inputs: Inputs) -> jax.Array:
    """The logits of jaxllm, (B, T, V)."""
    return model(
        inputs.src_BS,
        inputs.tgt_BT,
        src_segment_ids=inputs.is_src_BS,
        segment_ids=inputs.is_tgt_BT,
    ).logits
