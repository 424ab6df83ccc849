"""Conversations as texts and tokens, by the chat template of a model."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.untrusted.chat_templates import TemplateRenderer

from .chat_template import find_template, named_template, template_variables
from .gguf_companions import SUFFIX, companion_folder
from .tokenizer import Tokenizer

MARK = re.compile(r"{%-?\s*generation\s*-?%}")
Message = Mapping[str, Any]  # with a `role`, such as "user", and a `content`


class EncodedChat(NamedTuple):
    """The tokens of a conversation, and which of them a model has written."""

    ids: list[int]
    is_written: np.ndarray  # bool (T,): of turns of the assistant


def render_chat(path: str | Path, messages: Sequence[Message]) -> str:
    """Applies the chat template of a model to messages; the model's answer comes next.

    Templates run in Jinja's sandbox, in limited time and memory: they can compute texts, and
    nothing else.

    Args:
        path: a folder that has a tokenizer with a chat template, or a GGUF file.
        messages: with a `role`, such as "user", and a `content`.

    Returns:
        A text whose special tokens are meant as such: encode it as trusted, without adding more.

    Raises:
        UserError: there is no template, or it fails.
        MissingPackageError: a package that reads the GGUF file is not installed.
    """
    with Chat.of(path) as chat:
        return chat.render(messages, answering=True)


class Chat:
    """Renders and encodes conversations by one chat template; a context, which ends its process.

    Args:
        template: a Jinja template.
        special: the special tokens that it may use, such as `bos_token`.
        place: what the template came from, for messages.
    """

    def __init__(self, template: str, special: Mapping[str, str], place: object):
        self.template, self._special, self._place = template, special, place
        self._renderer = TemplateRenderer(template)

    @classmethod
    def of(cls, path: str | Path | None, template: str | None = None) -> "Chat":
        """Returns the chats of a model.

        Args:
            path: a folder or GGUF file with its tokenizer; None for bytes, which need a template.
            template: the name of a template or a file ending in .jinja; by default the model's.

        Raises:
            UserError: there is no template.
            MissingPackageError: a package that reads the GGUF file is not installed.
        """
        if path is None:
            if template is None:
                raise UserError("bytes have no chat template: name one, such as 'plain'")
            return cls(named_template(template), {"bos_token": "", "eos_token": "\0"}, template)
        place = local_path(path)
        is_file = place.is_file() and place.suffix != SUFFIX  # such as tokenizer.json
        folder = companion_folder(place.parent if is_file else place)
        found = find_template(folder) if template is None else named_template(template)
        return cls(found, template_variables(folder), template or path)

    def render(
        self, messages: Sequence[Message], *, tools: Any = None, answering: bool = False
    ) -> str:
        """Returns the text of messages. Raises UserError if the template fails.

        Args:
            messages: the conversation.
            tools: descriptions of the functions that the model may call, if any.
            answering: whether the assistant's next answer follows the text.
        """
        return self._rendered(messages, tools, answering).text

    @property
    def identity(self) -> str:
        """A text that is the same for chats that are rendered alike."""
        return blake2b(repr((self.template, sorted(self._special.items()))).encode()).hexdigest()

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        *,
        tools: Any = None,
        prompt: int = 0,
    ) -> EncodedChat:
        """Encodes a conversation, and finds the tokens that the assistant has written.

        They are those that the template marks by `{% generation %}`. Of a template without it, a
        turn's tokens are those that follow the tokens of the messages before it and of the prompt
        for an answer, up to the last special token of the turn.

        Args:
            messages: the conversation.
            tokenizer: the model's.
            tools: descriptions of the functions that the model may call, if any.
            prompt: the number of messages at the beginning of which nothing counts as written.

        Raises:
            UserError: the template fails, or shows a turn otherwise once others follow.
        """
        rendered = self._rendered(messages, tools, False)
        ids, offsets = _offsets(tokenizer, rendered.text, bool(rendered.spans))
        is_written = np.zeros(len(ids), bool)
        if rendered.spans or MARK.search(self.template):
            earlier = self._rendered(messages[:prompt], tools, False).spans if prompt else []
            for first, end in rendered.spans[len(earlier) :]:
                is_written |= (offsets[:, 0] < end) & (offsets[:, 1] > first)
            return EncodedChat(ids, is_written)
        special = set(tokenizer.special_ids)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant" and turn >= prompt:
                first, end = self._turn(messages, turn, tokenizer, tools, ids)
                ends = [at + 1 for at in range(first, end) if ids[at] in special]
                is_written[first : ends[-1] if ends else end] = True
        return EncodedChat(ids, is_written)

    def _turn(
        self,
        messages: Sequence[Message],
        turn: int,
        tokenizer: Tokenizer,
        tools: Any,
        ids: list[int],
    ) -> tuple[int, int]:
        """Returns where the tokens of a turn begin and end among those of the conversation."""
        asked = tokenizer.encode_chat(self.render(messages[:turn], tools=tools, answering=True))
        upto = tokenizer.encode_chat(self.render(messages[: turn + 1], tools=tools))
        if ids[: len(asked)] != asked or ids[: len(upto)] != upto:
            raise UserError(
                f"{self._place}: the chat template shows message {turn + 1} otherwise when others "
                "follow, so that its tokens cannot be told; give a template that marks them by "
                "{% generation %} and {% endgeneration %}"
            )
        return len(asked), len(upto)

    def _rendered(self, messages: Sequence[Message], tools: Any, answering: bool) -> Any:
        variables = {"messages": [dict(message) for message in messages], **self._special}
        fixed = {"tools": tools, "documents": None, "add_generation_prompt": answering}
        try:
            return self._renderer.render({**variables, **fixed})
        except UserError as error:
            raise UserError(f"{self._place}: the chat template fails: {error}") from None

    def close(self) -> None:
        """Ends the process of the template."""
        self._renderer.close()

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _offsets(tokenizer: Tokenizer, text: str, needed: bool) -> tuple[list[int], np.ndarray]:
    """Returns the tokens of a text and, if needed, their characters."""
    if needed:
        return tokenizer.encode_chat_offsets(text)
    ids = tokenizer.encode_chat(text)
    return ids, np.zeros((len(ids), 2), np.int64)
