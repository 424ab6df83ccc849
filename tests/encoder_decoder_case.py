"""Tiny random encoder-decoders of Hugging Face, with sources and targets of different lengths."""

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
    """A config of transformers: its class's prefix and its arguments."""

    prefix: str
    arguments: Mapping[str, Any]
    has_own_head: bool = False  # which transformers 5 has to be shown, whatever its config says

    def build(self) -> torch.nn.Module:
        """The model with distinct random numbers in every tensor; no norm scale is one."""
        config = getattr(transformers, f"{self.prefix}Config")(
            **self.arguments, attn_implementation="eager"
        )
        model = getattr(transformers, f"{self.prefix}ForConditionalGeneration")(config)
        if self.has_own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(3)))
        return calm(randomize(model)).eval()


def calm(model: torch.nn.Module) -> torch.nn.Module:
    """Makes queries of T5 smaller by sqrt(H), as its own initialisation does.

    Its scores have no scale. With larger ones, transformers in float32 is 1.3e-5 away from itself
    in float64, so that no other implementation can be nearer.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                parameter.mul_(model.config.d_kv**-0.5)
    return model


class Inputs(NamedTuple):
    """Tokens, and where they are none: rows are padded on the right to `LENGTH`."""

    src_BS: np.ndarray
    tgt_BT: np.ndarray
    is_src_BS: np.ndarray
    is_tgt_BT: np.ndarray


def inputs_of(model: torch.nn.Module, seed: int = 1) -> Inputs:
    """Random tokens in ragged rows."""
    rng = np.random.default_rng(seed)
    lengths = {"src": (LENGTH, 203, 1), "tgt": (171, LENGTH, 250)}
    tokens = {name: rng.integers(0, model.config.vocab_size, (3, LENGTH)) for name in lengths}
    masks = {
        name: (np.arange(LENGTH) < np.array(own)[:, None]).astype(np.int32)
        for name, own in lengths.items()
    }
    return Inputs(tokens["src"], tokens["tgt"], masks["src"], masks["tgt"])


def logits_of_original(model: torch.nn.Module, inputs: Inputs) -> np.ndarray:
    """What transformers computes, BTV."""
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
    """What ours computes, BTV."""
    return model(
        inputs.src_BS,
        inputs.tgt_BT,
        src_segment_ids=inputs.is_src_BS,
        segment_ids=inputs.is_tgt_BT,
    ).logits
