"""Reads `generation_config.json`: what generation follows, and what it does not follow."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.config.checks import show
from jaxllm.errors import UserError, on_one_line
from jaxllm.generation import Sampling, TokenRules
from jaxllm.generation.beam import EARLY_STOPPING, EarlyStopping
from jaxllm.hub import local_path
from jaxllm.tokenization import ByteTokenizer
from jaxllm.tokenization.special_tokens import (
    GENERATION_CONFIG,
    MODEL_CONFIG,
    find_eos_ids,
    read_ids,
    read_json,
)
from jaxllm.untrusted.regular_files import is_named

# Token ids by the names of `TokenRules`, and numbers.
RULES_OF_IDS = {
    "forced_eos": "forced_eos_token_id",
    "suppress": "suppress_tokens",
    "begin_suppress": "begin_suppress_tokens",
}
NUMBERS: dict[str, tuple[type, Any]] = {
    "no_repeat_ngram_size": (int, 0),
    "min_length": (int, 0),
    "min_new_tokens": (int, 0),
    "max_new_tokens": (int, None),
    "repetition_penalty": (float, 1.0),
    "length_penalty": (float, 1.0),
}
LENGTHS = ("min_length", "min_new_tokens")
# Fields that say how the user of a model chooses tokens, with the option that does the same.
OPTIONS = {
    "num_beams": ("--beams", 1),
    "max_length": ("--max-new-tokens", None),
    "num_return_sequences": ("--n", 1),
}
# Fields of sampling with their type and transformers' default, which count if `do_sample` is true.
SAMPLING: dict[str, tuple[type, Any]] = {
    "temperature": (float, 1.0),
    "top_k": (int, 50),
    "top_p": (float, 1.0),
    "min_p": (float, 0.0),
    "typical_p": (float, 1.0),
    "epsilon_cutoff": (float, 0.0),
    "eta_cutoff": (float, 0.0),
}
FOLLOWED = {"do_sample", "early_stopping", "bad_words_ids", "sequence_bias", *SAMPLING}
# Fields without an effect on which tokens are chosen, and those read elsewhere.
WITHOUT_EFFECT = {
    *("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "transformers_version", "_from_model_config", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "cache_implementation", "cache_config", "max_cache_len"),
    *("compile_config", "disable_compile", "continuous_batching_config", "low_memory"),
    *("prefill_chunk_size", "is_assistant", "num_assistant_tokens", "use_mtp"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("max_matching_ngram_size", "speculation_type", "assistant_ensemble_weight"),
}
# Values with which a field has no effect.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale"), 1.0),
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "encoder_no_repeat_ngram_size": 0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings of a checkpoint: those that are followed, and the names of the others.

    Attributes:
        eos_ids: end-of-sequence tokens, of which a chat model has several.
        rules: tokens that are forced or suppressed.
        max_new_tokens: the largest number of new tokens; None: not said.
        sampling: how tokens are chosen; greedily unless `do_sample` is true.
        length_penalty: as in `beam_search`.
        early_stopping: as in `beam_search`.
        not_followed: the fields that nothing here follows, as texts for a message.
    """

    eos_ids: tuple[int, ...] = ()
    rules: TokenRules = TokenRules()
    max_new_tokens: int | None = None
    sampling: Sampling = Sampling()
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    not_followed: tuple[str, ...] = ()


def read_generation_config(
    folder: str | Path, vocab_size: int, *, with_eos: bool = True
) -> GenerationConfig:
    """Reads the generation settings of a checkpoint as transformers does.

    They are in `generation_config.json` or, without that file, in the model's `config.json`.

    Args:
        folder: the checkpoint.
        vocab_size: the number of tokens that the model can generate.
        with_eos: whether to read end-of-sequence tokens, which bytes have one of their own for.

    Raises:
        UserError: a token id is outside the vocabulary or not an integer, or a number is not valid.
    """
    folder = local_path(folder)
    file = folder / GENERATION_CONFIG
    is_own = is_named(file)
    file = file if is_own else folder / MODEL_CONFIG
    fields = read_json(file)
    numbers = {name: _number(file, fields, name, *NUMBERS[name]) for name in NUMBERS}
    if numbers["min_new_tokens"]:
        numbers["min_length"] = 0  # as in transformers, the number of new tokens decides
    forced_bos = read_ids(file, "forced_bos_token_id", vocab_size)
    ids = {name: read_ids(file, field, vocab_size) for name, field in RULES_OF_IDS.items()}
    of_rules = {name: numbers[name] for name in ("no_repeat_ngram_size", *LENGTHS)}
    given: dict[str, Any] = {**ids, **of_rules, **_sequences(file, fields, vocab_size)}
    rules = TokenRules(forced_bos=forced_bos[0] if forced_bos else None, **given)
    return GenerationConfig(
        eos_ids=find_eos_ids(folder, vocab_size) if with_eos else (),
        rules=rules,
        not_followed=tuple(_not_followed(fields, with_eos=with_eos) if is_own else ()),
        sampling=_sampling(file, fields if is_own else {}, numbers["repetition_penalty"]),
        length_penalty=numbers["length_penalty"],
        early_stopping=_early_stopping(file, fields),
        max_new_tokens=numbers["max_new_tokens"] if is_own else None,
    )


def _sampling(file: Path, fields: Mapping[str, Any], penalty: float) -> Sampling:
    """Returns how tokens are chosen. Raises UserError for numbers out of range."""
    if fields.get("do_sample") is not True:
        return Sampling(repetition_penalty=penalty)
    numbers = {name: _number(file, fields, name, *SAMPLING[name]) for name in SAMPLING}
    numbers["top_k"] = numbers["top_k"] or None  # 0: all tokens
    numbers |= {name: None for name in ("top_p", "typical_p") if numbers[name] >= 1}
    try:
        return Sampling(repetition_penalty=penalty, **numbers)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _early_stopping(file: Path, fields: Mapping[str, Any]) -> EarlyStopping:
    given = fields.get("early_stopping") or False
    if not isinstance(given, bool | str) or given not in EARLY_STOPPING:
        raise UserError(f'{file}: early_stopping is {given!r}; it must be a bool or "never"')
    return given


def _sequences(file: Path, fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Returns the sequences that are never completed, and those with a bias, for `TokenRules`."""
    words, biases = fields.get("bad_words_ids") or [], fields.get("sequence_bias") or []
    pairs = biases if isinstance(biases, list) else None
    is_pair = lambda pair: isinstance(pair, list) and len(pair) == 2 and _is_number(pair[1])  # noqa: E731
    if pairs is None or not all(map(is_pair, pairs)):
        raise UserError(f"{file}: sequence_bias must be a list of pairs of token ids and a number")
    for name, lists in (("bad_words_ids", words), ("sequence_bias", [ids for ids, _ in pairs])):
        if not isinstance(lists, list) or not all(_is_ids(ids, vocab_size) for ids in lists):
            raise UserError(
                f"{file}: {name} must have lists of token ids from 0 to {vocab_size - 1}"
            )
    return {
        "bad_words": tuple(map(tuple, words)),
        "sequence_bias": tuple((tuple(ids), float(bias)) for ids, bias in pairs),
    }


def _is_ids(given: object, vocab_size: int) -> bool:
    if not isinstance(given, list) or not given:
        return False
    return all(type(token) is int and 0 <= token < vocab_size for token in given)


def _is_number(given: object) -> bool:
    return type(given) in (int, float)


def _number(
    file: Path, fields: Mapping[str, Any], name: str, kind: type, default: float | None
) -> Any:
    """Returns a number of the file, or its default. Raises UserError for anything else."""
    given = fields.get(name)
    if given is None:
        return default
    if type(given) not in (int, kind) or abs(given) > 2**30:
        raise UserError(f"{file}: {name} is {given!r}; it must be of type {kind.__name__}")
    return kind(given)


def _not_followed(fields: Mapping[str, Any], *, with_eos: bool) -> list[str]:
    """Describes the fields that would change which tokens are chosen and that are not followed."""
    found, eos = [], fields.get("eos_token_id")
    if not with_eos and eos not in (None, ByteTokenizer.eos_id, [ByteTokenizer.eos_id]):
        found.append(f"eos_token_id={eos!r} (a text of bytes ends with {ByteTokenizer.eos_id})")
    followed = {*NUMBERS, *RULES_OF_IDS.values(), *WITHOUT_EFFECT, *FOLLOWED}
    for name, value in fields.items():
        option, neutral = OPTIONS.get(name, ("", NEUTRAL.get(name)))
        if name in followed or value in (None, False, neutral, [], {}):
            continue
        shown = f"{on_one_line(name)}={show(value)}"
        found.append(shown + (f" ({option})" if option else ""))
    return found
