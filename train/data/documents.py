"""Text data: documents tokenized into two streams and cut into windows of `seq_len` tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer

from .batches import Examples, Rows
from .files import Policy, read_rows
from .files.row import same
from .held_out import check_split
from .streams.building import Source, build_streams
from .streams.packing import pack
from .streams.sharded import content_digest
from .streams.stream_writer import Encoded
from .streams.windows import TokenStream, Windows
from .text import cut_text, stdlib_rows, text_of

# How documents share rows, and whether they see each other.
Packing = Literal["separate", "joined", "best_fit", "padded"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Text data: the source files, the tokenizer and the fraction that is held out."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = Decoder

    # Files, folders or globs: .txt, .jsonl (also .gz, .zst), .json, .parquet, .arrow, .array_record
    # and folders that the package `datasets` saved. None: Python's stdlib source
    text: tuple[str, ...] | None = None
    text_key: str = "text"  # key or column of the text in each row
    # tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of init_from, and
    # bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    bos: bool | None = None  # whether documents begin with bos_token; None: as the tokenizer says
    # "separate": rows are cut from the stream of documents, whose tokens see their own only, at
    # positions that begin again with each. "best_fit": the same, but documents that fit into a row
    # are whole. "padded": a document in each row. "joined": a row is one text, whose documents see
    # those before them.
    packing: Packing = "separate"
    held_out: float = 0.02  # fraction of the documents that is never trained on
    seed: int = 0  # for the order of the training windows
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs
    # Folder for token files, reused by later runs and read where they are; None: tokens are in
    # memory
    cache: str | None = None
    bad_rows: Policy = "stop"  # or "skip" those that cannot be used, and count them

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed, self.max_epochs)

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
        return make_examples(self.train, self.held_out, self.packing, seq_len)


def make_examples(
    train: TokenStream, held_out: TokenStream, packing: Packing, seq_len: int
) -> Examples:
    """Cuts or packs two streams into examples of `seq_len` tokens."""
    streams = {"train": train, "held_out": held_out}
    fingerprint = {f"{name}_tokens": content_digest(each.tokens) for name, each in streams.items()}
    if packing != "joined":
        fingerprint |= {
            f"{name}_starts": content_digest(each.starts)
            for name, each in streams.items()
            if each.starts is not None
        }
    fingerprint |= {
        f"{name}_targets": content_digest(each.is_target)
        for name, each in streams.items()
        if each.is_target is not None
    }
    if packing not in ("separate", "joined"):
        fingerprint["packing"] = packing
    rows = [make_rows(each, packing, seq_len) for each in streams.values()]
    return Examples(rows[0], rows[1], {**fingerprint, "seq_len": seq_len})


def make_rows(stream: TokenStream, packing: Packing, seq_len: int) -> Rows:
    """Cuts or packs a stream into rows of `seq_len` tokens."""
    if packing in ("best_fit", "padded"):
        return pack(stream, seq_len, packing)
    if packing == "joined":
        return Windows(stream.tokens, seq_len, None, stream.is_target)
    return Windows(stream.tokens, seq_len, stream.starts, stream.is_target, stream.ends_with)


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
    source = text_source(cfg.text, tokenizer, key=cfg.text_key, bos=cfg.bos)
    streams = build_streams(source, cfg.held_out, cfg.cache, cfg.bad_rows)
    return Corpus(streams.train, streams.held_out, tokenizer, cfg.packing)


def text_source(
    patterns: Iterable[str] | None,
    tokenizer: Tokenizer,
    *,
    key: str = "text",
    bos: bool | None = None,
) -> Source[str]:
    """Returns the documents of files as token streams are made of.

    Args:
        patterns: files, folders or globs; None for Python's standard library.
        tokenizer: an end-of-sequence token follows each document.
        key: the key or column of the text in each row.
        bos: whether documents begin with the beginning-of-sequence token; see `DataConfig`.
    """

    def encode(texts: Sequence[str]) -> list[Encoded]:
        return [Encoded(ids) for ids in tokenizer.encode_documents(texts, bos=bos)]

    files = None if patterns is None else tuple(patterns)
    return Source(
        stdlib_rows if files is None else lambda: read_rows(files, (key,)),
        same if files is None else lambda record: text_of(record, key),
        str.encode,
        encode,
        identity=f"{tokenizer.fingerprint} {bos}",
        vocab_size=tokenizer.vocab_size,
        cut=cut_text,
    )
