"""A model that writes: loaded with its tokenizer and settings, and followed while it does."""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxllm.commands.environment import keep_programs
from jaxllm.commands.options import allowances, mesh_sizes
from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.untrusted.printable import shown

from .options import NEW_TOKENS, find_settings
from .tokenizers import check_vocabulary, find_tokenizer_of

if TYPE_CHECKING:
    from jaxllm.generation import Continuation, Session
    from jaxllm.generation.continuation import Stream
    from jaxllm.interop.loading.generation_config import GenerationConfig
    from jaxllm.models import TokenModel
    from jaxllm.tokenization import Tokenizer


class Writer(NamedTuple):
    """A loaded model, and how it writes."""

    model: "TokenModel"
    folder: Path | None  # of the tokenizer; None for bytes
    tokenizer: "Tokenizer"
    settings: "GenerationConfig"
    cache_dtype: str | None = None
    draft: "TokenModel | None" = None
    num_draft_tokens: int = 4

    def write(self, prompts: list[list[int]], **options: Any) -> list["Continuation"]:
        """Continues prompts by `generate`."""
        from jaxllm.generation import generate

        settings = self.settings
        return generate(
            self.model,
            prompts,
            settings.max_new_tokens or NEW_TOKENS,
            sampling=settings.sampling,
            rules=settings.rules,
            eos_ids=settings.eos_ids,
            cache_dtype=self.cache_dtype,  # type: ignore[arg-type] # one of the choices
            draft=self.draft,
            num_draft_tokens=self.num_draft_tokens,
            **options,
        )

    def session(self) -> "Session | None":
        """Returns a session, which reads a conversation once; None for models that have none."""
        from jaxllm.generation import Session
        from jaxllm.models import Decoder

        if self.draft is not None or not isinstance(self.model, Decoder):
            return None
        return Session(self.model, cache_dtype=self.cache_dtype)  # type: ignore[arg-type]

    def answer(
        self, session: "Session | None", prompt: list[int], seed: int, stream: "Stream"
    ) -> None:
        """Continues a prompt, of which a session reads only what is new."""
        settings = self.settings
        if session is None:
            self.write([prompt], seed=seed, stream=stream)
            return
        session.generate(
            prompt,
            settings.max_new_tokens or NEW_TOKENS,
            sampling=settings.sampling,
            rules=settings.rules,
            eos_ids=settings.eos_ids,
            seed=seed,
            stream=stream,
        )

    def text(self, tokens: list[int]) -> str:
        """Returns the text of new tokens, without the tokens that end it."""
        return self.tokenizer.decode([t for t in tokens if t not in self.settings.eos_ids])


@contextmanager
def loaded(arguments: argparse.Namespace) -> Iterator[Writer]:
    """Loads the model of a command; while the context lasts, its mesh is set."""
    import jax

    from jaxllm.interop import load_pretrained
    from jaxllm.models import TokenModel
    from jaxllm.train import make_mesh

    keep_programs()
    arguments.path = str(local_path(arguments.path))
    mesh = make_mesh(**mesh_sizes(arguments.mesh)) if arguments.mesh else None
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        given = allowances(arguments)
        model = load_pretrained(arguments.path, mesh=mesh, dtype=arguments.dtype, **given)
        if not isinstance(model, TokenModel):
            raise UserError(
                f"{arguments.path} is a {type(model).__name__}, which has no tokens to generate"
            )
        folder, tokenizer = find_tokenizer_of(arguments.path, arguments.tokenizer, model)
        settings = find_settings(arguments, model, tokenizer)
        writer = Writer(model, folder, tokenizer, settings, arguments.cache_dtype)
        if arguments.draft is not None:
            arguments.draft = str(local_path(arguments.draft))
            draft = load_pretrained(arguments.draft, mesh=mesh, dtype=arguments.dtype, **given)
            draft = check_vocabulary(arguments.draft, draft, writer.tokenizer)
            writer = writer._replace(draft=draft, num_draft_tokens=arguments.draft_tokens)
        yield writer


class Stopwatch:
    """Measures when the first token came, and how fast the others did."""

    def __init__(self) -> None:
        self.start, self.first, self.last, self.count = time.perf_counter(), 0.0, 0.0, 0
        self.drafted = self.accepted = 0

    def note(self, tokens: list[int]) -> None:
        """Counts tokens that have just come."""
        self.last = time.perf_counter()
        self.first, self.count = self.first or self.last, self.count + len(tokens)

    def note_drafts(self, rows: list["Continuation"]) -> None:
        """Counts the tokens that a draft model proposed."""
        self.drafted += sum(row.drafted for row in rows)
        self.accepted += sum(row.accepted for row in rows)

    def describe(self) -> str:
        """Returns the number of tokens, the time to the first, their rate and the peak memory."""
        if not self.count:
            return f"no tokens; peak memory {peak_memory() / 2**20:,.0f} MiB"
        rate = (self.count - 1) / max(self.last - self.first, 1e-9)
        share = self.accepted / max(self.drafted, 1)
        drafts = f"; {share:.0%} of {self.drafted} drafted tokens accepted" if self.drafted else ""
        return (
            f"{self.count} tokens, the first after {self.first - self.start:.2f} s, then "
            f"{rate:,.1f} tokens/s; peak memory {peak_memory() / 2**20:,.0f} MiB{drafts}"
        )


def peak_memory() -> int:
    """Returns the most bytes in use so far: of the first device, or else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    )


def printer(writer: Writer) -> tuple[Callable[[list[int]], None], Callable[[], None]]:
    """Returns functions that show tokens on stdout as they come, and what is left at the end.

    No character is shown in part, and nothing acts on the terminal.
    """
    from jaxllm.tokenization.text_stream import TextStream

    stream = TextStream(writer.tokenizer)

    def show(text: str) -> None:
        print(shown(text), end="", flush=True)

    def add(tokens: list[int]) -> None:
        show(stream.add([t for t in tokens if t not in writer.settings.eos_ids]))

    return add, lambda: show(stream.finish())
