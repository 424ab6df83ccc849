"""Heads: language models without one, and heads for other tasks beside the language model."""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

from jaxllm.interop.families.common.fields import Json

# Tensors that make logits of a language model.
HEAD_WEIGHTS = ("lm_head.weight", "embed_out.weight")
HEADS = (*HEAD_WEIGHTS, "lm_head.bias", "final_logits_bias")
# Tensors of Hugging Face checkpoints that belong to no model and are not written back.
LEFTOVERS = {
    "*rotary_emb.inv_freq": "derived from the config",
    "*rotary_emb.*_cached": "derived from the config",
    "*coder.version": "the version of a file format",
    "*.masked_bias": "a constant of the mask",
    "*.attn.bias": "the causal mask, a constant",
    "*.attention.bias": "the causal mask, a constant",
    "*position_ids": "derived from the config",
}
_TASKS = (
    *("score", "classifier", "classification_head", "qa_outputs", "regression_head", "reward_head"),
    *("v_head", "value_head", "rm_head", "critic_head", "multiple_choice_head"),
    "reward_model_head",
)
# Tensors of heads for other tasks, which are carried along as they are.
OTHER_HEADS = dict.fromkeys((f"{name}.*" for name in _TASKS), "a head for another task")
# Architectures of models without a head for language, by the ends of their names.
_WITHOUT = re.compile(
    r"((?<!LMHead)(?<!DoubleHeads)(?<!MT)Model|For(Sequence|Token)Classification|ForQuestionAnswering)$"
)
_LANGUAGE = re.compile(r"(ForCausalLM|LMHeadModel|MTModel|ForConditionalGeneration)$")
# Fields of a config about the head alone, which a model without one keeps for the way back.
HEAD_FIELDS = ("tie_word_embeddings", "scale_decoder_outputs", "final_logit_softcapping")


def is_head(name: str) -> bool:
    """Whether a name, without prefixes, is that of a head, for language or another task."""
    return name in HEADS or any(fnmatchcase(name, pattern) for pattern in OTHER_HEADS)


def lacks_head(architectures: Any, names: Collection[str], *, tied: bool, bare: bool) -> bool:
    """Whether a checkpoint holds a model that returns its hidden states.

    Args:
        architectures: of the config file.
        names: the tensors by the family's names.
        tied: whether the config ties the head to the embedding.
        bare: whether the names lack the prefix that a model with a head puts before them.
    """
    if any(name in names for name in HEAD_WEIGHTS):  # a bias alone is beside a tied head
        return False
    if is_without_head(architectures):
        return True
    return not tied and (bare or any(map(is_head, names)))


def is_without_head(architectures: Any) -> bool:
    """Whether a config's `architectures` name a class of transformers without a language head."""
    match architectures:
        case [str(name), *_]:
            return _WITHOUT.search(name) is not None
    return False


def architecture_without_head(name: str) -> str:
    """Returns the class of transformers without the head of another: `LlamaModel`."""
    return _LANGUAGE.sub("Model", name)


def without_head(values: Json) -> Json:
    """Returns config values, by dotted name, of the same model without its head."""
    if "decoder" in values:
        return {**values, "decoder": without_head(values["decoder"])}
    return {name: v for name, v in values.items() if not name.startswith("head.")} | {
        "head.kind": "none"
    }


def restore_head_fields(written: Json, base: Json, default: Sequence[str] | None = None) -> Json:
    """Restores what the original config of a model without a head says about the head.

    Args:
        written: as if the model had a head.
        base: the config that it came from; empty for a new model.
        default: the `architectures` if the original names none.
    """
    kept = {name: base[name] for name in HEAD_FIELDS if name in base}
    own = (
        default
        if default is not None and "architectures" not in base
        else written.get("architectures")
    )
    return {**written, **kept, "architectures": own}
