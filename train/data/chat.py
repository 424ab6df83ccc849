"""Chat data: conversations by a chat template, of which the assistant's turns are learned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models import Decoder, Model
from jaxllm.tokenization import Tokenizer, check_tokens, load_tokenizer
from jaxllm.tokenization.chat import Chat
from jaxllm.tokenization.finding import BYTES

from .batches import Examples
from .conversations import COLUMNS, Conversation, Form, parse_conversation
from .documents import Packing, make_examples
from .files import Policy, read_rows
from .held_out import check_split
from .streams.building import Source, build_streams
from .streams.stream_writer import Encoded

TrainOn = Literal["assistant", "all"]


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Chat data: files with conversations, the chat template, and what is learned of them."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    trains: ClassVar[type[Model]] = Decoder

    chat: tuple[str, ...]  # files, folders or globs, of the formats of `text` with rows
    # "messages" (OpenAI), "sharegpt", "alpaca" or "prompt_completion"; None: as the keys say
    form: Form | None = None
    # A chat template: a file ending in .jinja, or "chatml", "llama3" or "plain"; None: that of the
    # tokenizer
    template: str | None = None
    train_on: TrainOn = "assistant"  # whose turns are targets
    # tokenizer.json, a folder with files of a tokenizer, or "bytes"; None: that of init_from, and
    # bytes for a new model
    tokenizer: str | None = None
    eos: str | None = None  # end-of-sequence token, if the tokenizer's folder does not name it
    packing: Packing = "best_fit"  # as for `text`
    held_out: float = 0.02  # fraction of the conversations that is never trained on
    seed: int = 0  # for the order of the rows
    max_epochs: int | None = None  # how often a run may take each row; None: as often as it needs
    cache: str | None = None  # folder for token files; as for `text`
    bad_rows: Policy = "stop"  # or "skip" those that cannot be used, and count them

    def __post_init__(self) -> None:
        check_split(self.held_out, self.seed, self.max_epochs)

    def load(self, model: Model, seq_len: int) -> Examples:
        """Loads the conversations as rows for `model`.

        Raises:
            UserError: the model is not a Decoder, or a file, the tokenizer or the template is not
                usable.
            OSError: a file is missing or cannot be read.
        """
        if not isinstance(model, Decoder):
            raise UserError(
                f"chats train a Decoder, but the model class of this run is {type(model).__name__}"
            )
        tokenizer = load_tokenizer(self.tokenizer, eos=self.eos)
        is_chosen = self.tokenizer is not None or model.origin is None
        check_tokens(tokenizer, model.config, is_chosen=is_chosen, option="data.tokenizer")
        with self.open_template() as chat:
            source = chat_source(self.chat, chat, tokenizer, self.form, self.train_on)
            streams = build_streams(source, self.held_out, self.cache, self.bad_rows)
        return make_examples(*streams, self.packing, seq_len)

    def open_template(self) -> Chat:
        """Returns the chats of the tokenizer; a context."""
        path = None if self.tokenizer == BYTES else self.tokenizer
        try:
            return Chat.of(path, self.template)
        except UserError as error:
            raise UserError(f"{error}; data.template names another") from None


def chat_source(
    patterns: Iterable[str],
    chat: Chat,
    tokenizer: Tokenizer,
    form: Form | None = None,
    train_on: TrainOn = "assistant",
) -> Source[Conversation]:
    """Returns the conversations of files as token streams are made of.

    Args:
        patterns: files, folders or globs.
        chat: the chat template.
        tokenizer: encodes what the template makes, and nothing more.
        form: in which form conversations are; None: as their keys say.
        train_on: "assistant" makes its turns targets, "all" everything.
    """

    def encode(given: Sequence[Conversation]) -> list[Encoded]:
        return [encode_conversation(each, chat, tokenizer, train_on) for each in given]

    files = tuple(patterns)
    return Source(
        lambda: read_rows(files, COLUMNS),
        partial(parse_conversation, form=form),
        Conversation.content,
        encode,
        identity=f"{tokenizer.fingerprint} {chat.identity} {train_on}",
        vocab_size=tokenizer.vocab_size,
        has_targets=True,
        close=chat.close,
    )


def encode_conversation(
    conversation: Conversation, chat: Chat, tokenizer: Tokenizer, train_on: TrainOn = "assistant"
) -> Encoded:
    """Encodes a conversation; its targets are the tokens that the assistant has written.

    A plain prompt and completion are one document, whose targets are the completion and its end.

    Raises UserError if the template fails, or marks nothing that the assistant has written.
    """
    if conversation.plain is not None:
        ids, is_written = _encode_plain(*conversation.plain, tokenizer)
    else:
        ids, is_written = chat.encode(
            conversation.messages, tokenizer, tools=conversation.tools, prompt=conversation.prompt
        )
    if train_on == "all":
        is_written = np.ones(len(ids), bool)
    if not is_written.any():
        raise UserError("the chat template shows nothing that the assistant has written")
    return Encoded(ids, is_written)


def _encode_plain(
    prompt: str, completion: str, tokenizer: Tokenizer
) -> tuple[list[int], np.ndarray]:
    ids = tokenizer.encode_document(prompt + completion)
    asked = tokenizer.encode_document(prompt)[:-1]
    pairs = zip(asked, ids, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(asked), len(ids)))
    return ids, np.arange(len(ids)) >= same
