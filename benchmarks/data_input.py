"""Input data: tokenizing beside the package `tokenizers` alone, and batches beside training steps.

Both sides tokenize the same JSON Lines of Python's standard library, with a BPE tokenizer of 32,000
tokens that is trained on them; ours also writes shards, with what training checks. Batches are
packed by best fit and read from these shards; the training step is that of `train_step`.
"""

import functools
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from side_by_side import Comparison, compare
from train_step import LLAMA, Case

from jaxllm.commands.operations.data import open_documents
from jaxllm.config import with_fields
from jaxllm.models import build_abstract
from jaxllm.tokenization import load_tokenizer
from jaxllm.train.data.batches import Batches
from jaxllm.train.data.streams.tokenizing import Options, sizes_of, tokenize_files
from jaxllm.train.data.text import stdlib_documents
from jaxllm.train.data.tokens import TokensConfig

VOCAB_SIZE = 32_000
END = "<|endoftext|>"
BATCH_SIZE, SEQ_LEN = 4, 512


def run(rounds: int) -> list[Comparison]:
    """Measures tokenizing and reading batches."""
    with tempfile.TemporaryDirectory() as scratch:
        return [*_compare_all(Path(scratch), rounds)]


def _compare_all(folder: Path, rounds: int) -> Iterator[Comparison]:
    texts = stdlib_documents()
    file = folder / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = _train(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    numbers = itertools.count()
    yield compare(
        f"tokenize, {file.stat().st_size / 1e6:.0f} MB of JSON Lines",
        lambda: _ours(file, folder / "tokenizer.json", folder / f"{next(numbers)}"),
        lambda: _theirs(file, tokenizer),
        rounds=rounds,
        target=0.9,
    )
    model = build_abstract(with_fields(LLAMA, vocab_size=VOCAB_SIZE))
    examples = TokensConfig(tokens=(str(folder / "0"),), packing="best_fit").load(model, SEQ_LEN)
    batches = Batches(examples, batch_size=BATCH_SIZE).train()
    step = Case(LLAMA, BATCH_SIZE, SEQ_LEN)._ours(
        np.random.default_rng(0).integers(0, LLAMA.vocab_size, (BATCH_SIZE, SEQ_LEN + 1))
    )
    yield compare(
        f"a batch of B {BATCH_SIZE}, T {SEQ_LEN} beside a train step, 32M",
        lambda: next(batches),
        step,
        rounds=rounds,
        target=20,
    )


def _train(texts: list[str]) -> tokenizers.Tokenizer:
    """Trains a tokenizer as GPT-2's, on a tenth of the texts."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[::10], trainer)
    return tokenizer


def _ours(file: Path, tokenizer: Path, folder: Path) -> None:
    loaded = load_tokenizer(tokenizer, eos=END)
    files, sizes = sizes_of([str(file)])
    made_by = {"tokenizer": str(tokenizer)}
    options = Options(
        files, sizes, loaded.fingerprint, loaded.vocab_size, made_by, held_out=0, bad_rows="stop"
    )
    source = functools.partial(
        open_documents, tokenizer=str(tokenizer), eos=END, key="text", chat=False, template=None
    )
    tokenize_files(source, options, folder, 1, lambda share, tokens: None)


def _theirs(file: Path, tokenizer: tokenizers.Tokenizer) -> int:
    count = 0
    with file.open("rb") as lines:
        while batch := [json.loads(line)["text"] for line in itertools.islice(lines, 256)]:
            count += sum(len(each.ids) for each in tokenizer.encode_batch_fast(batch))
    return count
