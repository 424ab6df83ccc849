"""Prompts: checked, and padded to few sizes, so that few programs need compiling."""

import operator
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from jaxllm.config import EncoderDecoderConfig, check_has_head
from jaxllm.config.checks import show
from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model, TokenModel
from jaxllm.models.stack import check_positions

EXPECTED = "give a list of prompts, each a list of token ids, as in [[1, 2], [3]]"
MAX_TOKENS = 2**30  # places in the cache are int32, and their number is rounded up


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pads prompts on the right to a common length; returns tokens, BT, and lengths, B."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), bucket_size(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def bucket_size(size: int) -> int:
    """Returns the next power of two, at least 16, so that few array sizes need compiling."""
    return max(16, 1 << (int(size) - 1).bit_length())


def batch_size(num_rows: int) -> int:
    """Returns the next power of two or, above 8, the next multiple of 8, for the same reason."""
    return -(-num_rows // 8) * 8 if num_rows > 8 else 1 << (num_rows - 1).bit_length()


def check_token_model(model: Model) -> TokenModel:
    """Returns the model. Raises UserError if it has no vocabulary, or no head to choose from it."""
    if not isinstance(model, TokenModel):
        raise UserError(
            f"a {type(model).__name__} has no vocabulary to generate from: `generate_vectors` "
            "continues sequences of vectors"
        )
    check_has_head(model.config, "generate")
    return model


def check_prompts(model: TokenModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises UserError if the model cannot generate `max_new_tokens` from these prompts."""
    if not _is_whole_number(max_new_tokens):
        raise UserError(f"max_new_tokens={show(max_new_tokens)} is not a whole number")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} is less than 1")
    if max_new_tokens > MAX_TOKENS:
        raise UserError(f"max_new_tokens={max_new_tokens} is more than {MAX_TOKENS}")
    _check_are_token_ids(prompts)
    vocab_size = _prompt_vocab_size(model)
    for i, prompt in enumerate(prompts):
        if unknown := [token for token in prompt if not 0 <= token < vocab_size]:
            raise UserError(f"prompt {i} has token {unknown[0]}, but vocab_size={vocab_size}")
    _check_length(model, max(map(len, prompts)), max_new_tokens)


def check_images(
    model: TokenModel, prompts: Sequence[Sequence[int]], images: Sequence[ArrayLike | None]
) -> list[np.ndarray]:
    """Returns the images of each prompt, ICHW.

    Raises UserError if the model does not see, or for images that do not fit its image tokens.
    """
    vision = model.config.vision if isinstance(model, Decoder) else None
    if vision is None or vision.image_token is None:
        raise UserError("images need a model with an image encoder and an image token")
    if len(images) != len(prompts):
        raise UserError(f"images has {len(images)} entries for {len(prompts)} prompts")
    shape = (vision.num_channels, vision.image_size, vision.image_size)
    each = vision.num_patches // vision.shuffle**2
    found = []
    for i, (prompt, given) in enumerate(zip(prompts, images, strict=True)):
        own = np.zeros((0, *shape), np.float32) if given is None else np.asarray(given)
        if own.shape[1:] != shape:
            raise UserError(
                f"the images of prompt {i} have shape {own.shape}; it must be (I, C, H, W) with "
                f"(C, H, W)={shape}"
            )
        places = sum(token == vision.image_token for token in prompt)
        if places != len(own) * each:
            raise UserError(
                f"prompt {i} has {places} image tokens ({vision.image_token}) for {len(own)} "
                f"images, each of which takes {each}"
            )
        found.append(own)
    return found


def _check_are_token_ids(prompts: Sequence[Sequence[int]]) -> None:
    """Raises UserError unless there are prompts and each is a list of at least one token id."""
    if not _is_list(prompts):
        raise UserError(f"prompts={show(prompts)}: {EXPECTED}")
    if len(prompts) == 0:
        raise UserError(f"no prompts are given: {EXPECTED}")
    for i, prompt in enumerate(prompts):
        if not _is_list(prompt):
            raise UserError(f"prompt {i} is {show(prompt)}: {EXPECTED}")
        if len(prompt) == 0:
            raise UserError(f"prompt {i} is empty: there is nothing to continue")
        if wrong := [token for token in prompt if not _is_whole_number(token)]:
            raise UserError(f"prompt {i} has {show(wrong[0])}, which is no token id: {EXPECTED}")


def _is_list(given: object) -> bool:
    """Whether this is a sequence other than a text, or an array with a first dimension."""
    is_array = getattr(given, "ndim", 0) > 0
    return is_array or (isinstance(given, Sequence) and not isinstance(given, str | bytes))


def _is_whole_number(given: object) -> bool:
    """Whether this is an int, or an integer scalar of NumPy, JAX or PyTorch."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        return False
    try:
        operator.index(given)
    except TypeError:  # an array, or a scalar of another dtype
        return False
    return True


def _check_length(model: TokenModel, longest_prompt: int, max_new_tokens: int) -> None:
    """Raises UserError if the tokens exceed the model's positions."""
    config = model.config
    if isinstance(config, EncoderDecoderConfig):
        limit = config.longest_source
        if limit is not None and longest_prompt > limit:
            raise UserError(
                f"a prompt of {longest_prompt} tokens is longer than max_len={limit}, where the "
                "positions of the source end"
            )
        check_positions(longest_prompt, config.encoder)
        config, longest_prompt = config.decoder, 1  # the target begins with the start token
    # The last new token is not fed back, so it needs no position.
    last = longest_prompt + max_new_tokens - 1
    if config.longest is not None and last > config.longest:
        raise UserError(
            f"{longest_prompt} tokens and max_new_tokens={max_new_tokens} exceed "
            f"max_len={config.longest}, where the model's positions end"
        )
    check_positions(last, config)  # warns


def _prompt_vocab_size(model: TokenModel) -> int:
    if isinstance(model, Decoder):
        return model.config.vocab_size
    if model.config.start_token is None:
        raise UserError(
            "config.start_token=None: generation needs the token that a target begins with"
        )
    return model.config.source_vocab_size or model.config.decoder.vocab_size
