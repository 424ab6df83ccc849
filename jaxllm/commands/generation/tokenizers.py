"""The tokenizer of a checkpoint or a run, as commands find it."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import UserError
from jaxllm.hub import local_path

if TYPE_CHECKING:
    from jaxllm.models import Model, TokenModel
    from jaxllm.tokenization import Tokenizer


def own_folders(path: str, model: "TokenModel") -> list[Path]:
    """Returns the folders with the files of a checkpoint or run: its own, then its origin's."""
    from jaxllm.tokenization.gguf_companions import companion_folder

    origin = [] if model.origin is None else model.origin.folders
    return [companion_folder(Path(path)), *origin]


def find_tokenizer_of(
    path: str, given: str | None, model: "TokenModel"
) -> tuple[Path | None, "Tokenizer"]:
    """Returns the folder of a tokenizer, None for bytes, and the tokenizer.

    It is the given one, or that of the run, the checkpoint or its origin.
    """
    from jaxllm.tokenization import check_tokens, find_tokenizer, load_tokenizer
    from jaxllm.tokenization.finding import BYTES
    from jaxllm.tokenization.gguf_companions import companion_folder

    chosen, eos, is_new = given, None, False
    if given is None and (Path(path) / "config.yaml").is_file():
        chosen, eos, is_new = _tokenizer_of_run(Path(path), model)
    found = find_tokenizer(own_folders(path, model)) if chosen is None and not is_new else None
    tokenizer = load_tokenizer(chosen or found, eos=eos)
    check_tokens(
        tokenizer, model.config, is_chosen=chosen is not None or is_new, option="--tokenizer"
    )
    place = chosen or found
    if place is None or str(place) == BYTES:
        return None, tokenizer
    folder = companion_folder(local_path(place))
    return folder if folder.is_dir() else folder.parent, tokenizer


def check_vocabulary(path: str, draft: "Model", tokenizer: "Tokenizer") -> "TokenModel":
    """Returns a draft model. Raises UserError if its tokens do not mean what the tokenizer's do."""
    from jaxllm.models import TokenModel

    if not isinstance(draft, TokenModel):
        raise UserError(f"{path} is a {type(draft).__name__}, which has no tokens to propose")
    _, own = find_tokenizer_of(path, None, draft)
    if own.fingerprint == tokenizer.fingerprint:
        return draft
    for token in range(min(own.vocab_size, tokenizer.vocab_size)):
        ours, theirs = tokenizer.decode([token]), own.decode([token])
        if ours != theirs:
            raise UserError(
                f"{path} has another vocabulary: its token {token} is {theirs!r}, the model's "
                f"{ours!r}"
            )
    return draft


def _tokenizer_of_run(path: Path, model: "TokenModel") -> tuple[str | None, str | None, bool]:
    """Returns what a run was trained with: the tokenizer, its eos, and whether the model is new."""
    from jaxllm.train.config import load_stored
    from jaxllm.train.data import Tokenized
    from jaxllm.train.setup import with_tokenizer

    run = load_stored(path / "config.yaml")
    data = with_tokenizer(run, model)
    if not isinstance(data, Tokenized):
        raise UserError(
            f"{path} was not trained on text, so it has no tokenizer; its data is {data}"
        )
    return data.tokenizer, data.eos, run.model is not None
