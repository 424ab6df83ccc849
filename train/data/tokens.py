"""Token data: shards that `jaxllm tokenize` or others have written, read where they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer

from .batches import Examples
from .documents import Packing, make_examples
from .files.finding import local_files
from .held_out import check_split
from .streams.manifest import FILE, Manifest, read_manifest, read_shards
from .streams.token_files import ENDS, read_token_files
from .streams.windows import TokenStream


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Token data: the files, and how documents share rows."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = Decoder

    # A folder of `jaxllm tokenize`; or files or globs: .npy, and .bin of nanoGPT, llm.c or
    # Megatron with its .idx
    tokens: tuple[str, ...]
    # Files that are never trained on, as nanoGPT's val.bin; None: what `jaxllm tokenize` held out
    held_out_tokens: tuple[str, ...] | None = None
    # The tokenizer that made them: checked if a manifest tells, and the source of the token that
    # ends documents; None: that of init_from
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    packing: Packing = "separate"  # as for `text`
    seed: int = 0  # for the order of the rows
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs

    def __post_init__(self) -> None:
        check_split(0, self.seed, self.max_epochs)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Opens the files, of which rows are read when they are needed.

        Raises:
            UserError: the model is not a Decoder; a file is none of tokens, is missing, or was
                changed; or tokens are of another tokenizer.
        """
        if not isinstance(model, Decoder):
            raise UserError(
                f"tokens train a Decoder, but the model class of this run is {type(model).__name__}"
            )
        tokenizer = None
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer, eos=self.eos)
            check_tokens(tokenizer, model.config, is_chosen=True, option="data.tokenizer")
        limit = model.config.vocab_size
        folders = [Path(name) for name in self.tokens if (Path(name) / FILE).is_file()]
        if folders:
            if len(self.tokens) > 1 or self.held_out_tokens is not None:
                raise UserError("data.tokens takes one folder of `jaxllm tokenize`, or token files")
            manifest = read_manifest(folders[0])
            _check_tokenizer(folders[0], manifest, tokenizer, limit)
            streams = [
                read_shards(folders[0], manifest, split, limit) for split in ("train", "held_out")
            ]
        else:
            streams = [
                self._read(patterns, tokenizer, limit)
                for patterns in (self.tokens, self.held_out_tokens or ())
            ]
        return make_examples(streams[0], streams[1], self.packing, seq_len)

    def _read(
        self, patterns: Sequence[str], tokenizer: Tokenizer | None, limit: int
    ) -> TokenStream:
        files = local_files(patterns, ENDS)
        ends_with = None if tokenizer is None else tokenizer.eos_id
        stream = read_token_files(files, ends_with, limit)
        if stream.starts is None and ends_with is None and self.packing != "joined":
            raise UserError(
                f"{files[0]}: nothing says where documents begin; set data.tokenizer, whose "
                "end-of-sequence token ends them, or data.packing: joined"
            )
        return stream


def _check_tokenizer(
    folder: Path, manifest: Manifest, tokenizer: Tokenizer | None, limit: int
) -> None:
    """Raises UserError if the shards were made by another tokenizer than the run's."""
    if tokenizer is not None and tokenizer.fingerprint != manifest.tokenizer:
        raise UserError(
            f"{folder / FILE}: the shards were made by another tokenizer than the run's, "
            f"{manifest.made_by.get('tokenizer')!r}: tokenize the files again, or name that one in "
            "data.tokenizer"
        )
    if manifest.vocab_size > limit:
        raise UserError(
            f"{folder / FILE}: the tokenizer of the shards has {manifest.vocab_size} tokens; the "
            f"model's vocab_size is {limit}"
        )
