"""The tokens that two models are compared on."""

from pathlib import Path

import numpy as np

from jaxllm.interop.tensors import CheckpointError

# A wrong rotary frequency passes for right over the first few tokens.
MIN_TOKENS = 300


def random_tokens(vocab_size: int, batch_size: int, num_tokens: int, seed: int) -> np.ndarray:
    """Token ids, BT: rare ones, frequent ones and repetitions, and both ends of the vocabulary.

    Uniform draws alone would hardly ever repeat a token of a large vocabulary, so attention would
    have nothing to find.
    """
    rng = np.random.default_rng(seed)
    shape = (batch_size, num_tokens)
    rare_BT = rng.integers(vocab_size, size=shape)
    frequent_BT = rng.choice(rng.integers(vocab_size, size=16), shape)
    tokens_BT = np.where(rng.random(shape) < 0.5, rare_BT, frequent_BT)
    quarter = num_tokens // 4
    tokens_BT[:, -quarter:] = tokens_BT[:, :quarter]
    tokens_BT[:, 1], tokens_BT[:, 2] = 0, vocab_size - 1
    return tokens_BT


def text_tokens(text: str, folder: Path, vocab_size: int, num_tokens: int) -> np.ndarray:
    """The first tokens of a text, which is repeated if it is too short; one row, BT.

    Raises:
        ValueError: the text is empty.
        CheckpointError: the folder has no tokenizer, and the vocabulary is too small for bytes.
    """
    tokenizer_file = folder / "tokenizer.json"
    if tokenizer_file.is_file():
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(str(tokenizer_file)).encode(text).ids
    elif vocab_size >= 256:
        ids = list(text.encode())
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and {vocab_size} tokens are too few to spell text in"
            " bytes"
        )
    if not ids:
        raise ValueError("the text has no tokens")
    return np.resize(np.array(ids), (1, num_tokens))
