"""Text data: documents tokenized into two streams and cut into windows of `seq_len` tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Literal

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model
from jaxllm.storage.paths import check_output
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer

from .batches import Examples, digest
from .held_out import check_split
from .stream_cache import read_stream, write_stream
from .text import split_documents, stdlib_documents, text_documents
from .windows import TokenStream, Windows

# Whether the documents of a window are texts of their own, or one text.
Packing = Literal["separate", "joined"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Text data: the source files, the tokenizer and the fraction that is held out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = Decoder

    text: tuple[str, ...] | None = None  # .txt, .jsonl files or globs; None: Python's stdlib source
    text_key: str = "text"  # key of the text in each line of a .jsonl file
    # tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of init_from, and
    # bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    bos: bool | None = None  # whether documents begin with bos_token; None: as the tokenizer says
    # "separate": tokens see their own document only, and positions begin again with each document.
    # "joined": a window is one text, whose documents see those before them.
    packing: Packing = "separate"
    held_out: float = 0.02  # fraction of the documents that is never trained on
    seed: int = 0  # for the order of the training windows
    cache: str | None = None  # folder for token files, reused by later runs; None: no cache

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads the text as windows for `model`.

        Raises:
            UserError: the model is not a Decoder, or a file or the tokenizer is not usable.
            OSError: a file is missing or cannot be read.
        """
        if not isinstance(model, Decoder):
            raise UserError(
                f"text trains a Decoder, but the model class of this run is {type(model).__name__}"
            )
        tokenizer = load_tokenizer(self.tokenizer, eos=self.eos)
        is_chosen = self.tokenizer is not None or model.origin is None
        check_tokens(tokenizer, model.config, is_chosen=is_chosen, option="data.tokenizer")
        return load_corpus(self, tokenizer).windows(seq_len)


@dataclass(frozen=True)
class Corpus:
    """Token streams of the training and the held-out documents."""

    train: TokenStream
    held_out: TokenStream
    tokenizer: Tokenizer
    packing: Packing = "separate"

    def windows(self, seq_len: int) -> Examples:
        """Cuts both streams into examples of `seq_len` tokens."""
        streams = {"train": self.train, "held_out": self.held_out}
        fingerprint = {f"{name}_tokens": digest(each.tokens) for name, each in streams.items()}
        is_separate = self.packing == "separate"
        if is_separate:
            fingerprint |= {f"{name}_starts": digest(each.starts) for name, each in streams.items()}
        train, held_out = (
            Windows(each.tokens, seq_len, each.starts if is_separate else None)
            for each in streams.values()
        )
        return Examples(train, held_out, {**fingerprint, "seq_len": seq_len})


def load_corpus(cfg: DataConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """Reads the documents, splits off the held-out ones and tokenizes both.

    Args:
        cfg: the data.
        tokenizer: by default the one that `cfg` names.

    Raises:
        UserError: a file or the tokenizer is not usable.
        FileNotFoundError: a file is missing, or a pattern matches no file.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(cfg.tokenizer, eos=cfg.eos)
    if cfg.text is None:
        documents = stdlib_documents()
    else:
        documents = text_documents(cfg.text, key=cfg.text_key)
    train, held_out = (
        token_stream(texts, tokenizer, bos=cfg.bos, cache=cfg.cache)
        for texts in split_documents(documents, cfg.held_out)
    )
    return Corpus(train, held_out, tokenizer, cfg.packing)


def token_stream(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    *,
    bos: bool | None = None,
    cache: str | None = None,
) -> TokenStream:
    """Tokenizes documents into one array, in the smallest unsigned dtype that holds every id.

    Args:
        documents: texts; an end-of-sequence token follows each.
        tokenizer: its fingerprint, `bos` and the texts determine the name of the cache file.
        bos: whether documents begin with the beginning-of-sequence token; see `DataConfig`.
        cache: a folder. Its file is memory-mapped if it is there and sound, and written otherwise.
    """
    if cache is None:
        return _tokenize(documents, tokenizer, bos)
    digest = blake2b(f"{tokenizer.fingerprint} {bos}".encode(), digest_size=16)
    for text in documents:
        digest.update(b"%d " % len(text) + text.encode())
    file = check_output(cache) / f"{digest.hexdigest()}.npy"
    if (stream := read_stream(file)) is None:
        stream = _tokenize(documents, tokenizer, bos)
        write_stream(file, stream)
    return stream


def _tokenize(documents: Sequence[str], tokenizer: Tokenizer, bos: bool | None) -> TokenStream:
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    texts = [np.array(tokenizer.encode_document(text, bos=bos), dtype) for text in documents]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return TokenStream(np.concatenate([np.empty(0, dtype), *texts]), np.insert(ends, 0, 0)[:-1])
