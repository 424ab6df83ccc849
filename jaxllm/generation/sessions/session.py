"""Sessions: a text that goes on, of which the model reads only what is new."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config.checks import check_seed
from jaxllm.errors import UserError
from jaxllm.generation.continuation import Continuation, Follower, Stream
from jaxllm.generation.decode import GREEDY, NO_RULES
from jaxllm.generation.incremental import frequencies_change, read_texts
from jaxllm.generation.loop import RUNNING, Program, Progress, advance, begin
from jaxllm.generation.prompts import bucket_size, check_prompts, check_token_model, pad_prompts
from jaxllm.generation.rules import TokenRules
from jaxllm.generation.sampling import Sampling
from jaxllm.generation.scores.processors import Settings, Text
from jaxllm.generation.scores.settings import stack_settings
from jaxllm.layers.attention.cache import CacheDtype, Caches, RingCache
from jaxllm.layers.attention.recurrent_cache import DeltaCache
from jaxllm.models import Decoder, Model
from jaxllm.sharding import to_host


class Session:
    """Generates again and again from a text that grows, such as a conversation.

    The cache of a call serves the next one for as many tokens as both prompts begin with, so that
    a turn takes the time of what is new. The tokens are those of `generate`.

    Args:
        model: a decoder; the layers may be scanned or not.
        cache_dtype: of keys and values, such as "int8". Default: that of the activations.

    Attributes:
        num_read: tokens that the last call has read, without those that were in the cache.
    """

    def __init__(self, model: Model, *, cache_dtype: CacheDtype | None = None):
        model = check_token_model(model)
        if not isinstance(model, Decoder):
            raise UserError("a Session continues the text of a decoder: use `generate`")
        self.model = model
        self.program, self.params = Program.of(model, cache_dtype=cache_dtype)
        self.cache: Caches | None = None
        self.known: list[int] = []  # the tokens that the cache holds
        self.length = 0  # tokens that it has room for
        self.num_read = 0

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        rules: TokenRules = NO_RULES,
        eos_ids: Sequence[int] = (),
        seed: int = 0,
        stream: Stream | None = None,
    ) -> Continuation:
        """Continues a prompt as `generate` does, which has the arguments and errors.

        The prompt is the whole text, with what was said before.
        """
        check_prompts(self.model, [prompt], max_new_tokens)
        check_seed(seed)
        rules.check(self.model.config.vocab_size)
        settings = stack_settings(
            self.model.config.vocab_size,
            [sampling],
            [rules],
            limits=[max_new_tokens],
            seeds=[(seed, 0)],
            eos_ids=eos_ids,
        )
        follower = Follower(1, set(eos_ids), stream=stream)
        steps = np.int32(follower.steps or max_new_tokens)
        progress = self._begin(list(prompt), max_new_tokens, settings, steps)
        try:
            while follower.follow(progress) is not None:
                progress = advance(self.program, self.params, progress, settings, steps)
        finally:
            self._keep(progress)
        return follower.continuations(progress, with_log_probs=True)[0]

    def _begin(
        self, prompt: list[int], max_new_tokens: int, settings: Settings, steps: np.int32
    ) -> Progress:
        """Reads what is new of the prompt; of a new text, generates the first tokens too."""
        cache, count = self.cache, self._count_known(prompt)
        self.cache = None  # its arrays are given away
        length = max(self.length, bucket_size(len(prompt) + max_new_tokens))
        if cache is not None and count:
            cache = self._grown(cache, length)
        self.length = length
        if cache is None or not count:
            self.num_read = len(prompt)
            tokens, lengths = pad_prompts([prompt])
            room = length - tokens.shape[1]
            return begin(self.program, room, self.params, tokens, lengths, settings, steps)
        self.num_read = len(prompt) - count
        tokens, lengths = pad_prompts([prompt[count:]])
        text = np.zeros((1, length), np.int32)
        text[0, : len(prompt)] = prompt
        start = np.array([count], np.int32)
        return _resume(self.program, self.params, cache, tokens, lengths, start, text)

    def _count_known(self, prompt: list[int]) -> int:
        """Returns how many of the prompt's first tokens the cache serves; one is always read."""
        if frequencies_change(self.model.config):  # what is cached depends on the whole text
            return 0
        pairs = zip(prompt[:-1], self.known, strict=False)
        count = next((i for i, (own, known) in enumerate(pairs) if own != known), None)
        count = min(len(prompt) - 1, len(self.known)) if count is None else count
        # The tokens after it have overwritten earlier ones in a ring, or changed a state.
        forgets = any(isinstance(x, RingCache | DeltaCache) for x in (self.cache or {}).values())
        return 0 if forgets and count < len(self.known) else count

    def _grown(self, cache: Caches, length: int) -> Caches | None:
        """Returns the cache with room for so many tokens; None if a layer then keeps a ring."""
        if length == self.length:
            return cache
        dtype = self.program.cache_dtype
        model = self.model.restacked(False)
        wanted = jax.eval_shape(lambda: model.init_cache(1, length, None, dtype))
        if [*map(type, wanted.values())] != [*map(type, cache.values())]:
            return None

        def pad(x: Array, to: jax.ShapeDtypeStruct) -> Array:
            return jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, to.shape, strict=True)])

        return jax.tree.map(pad, cache, wanted)

    def _keep(self, progress: Progress) -> None:
        """Keeps the cache for the next call, unless an interruption came while it was written."""
        leaves = jax.tree.leaves(progress)
        if any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves):
            self.known = []
            return
        [tokens], [length] = to_host(progress.text.tokens_BS), to_host(progress.text.lengths_B)
        self.cache = progress.cache
        states = [one for one in self.cache.values() if isinstance(one, DeltaCache)]
        # The last token is not read, unless the row was still running; keys may be written again.
        count = int(to_host(states[0].next_B)[0]) if states else length - 1
        self.known = tokens[:count].tolist()


@functools.partial(jax.jit, static_argnums=0, donate_argnames="cache")
def _resume(
    program: Program,
    params: dict,
    cache: Caches,
    tokens_BT: Array,
    lengths_B: Array,
    starts_B: Array,
    text_BS: Array,
) -> Progress:
    """Reads tokens after the `starts_B` that the cache holds; `advance` then generates others."""
    model = program.model(params)
    assert isinstance(model, Decoder), "checked by Session"
    x_BD, cache = read_texts(model, tokens_BT, lengths_B, cache, starts_B=starts_B)
    whole_B = starts_B + lengths_B
    text, ended_B = Text(text_BS, whole_B, whole_B), jnp.full_like(whole_B, RUNNING)
    return Progress(text, x_BD, cache, jnp.zeros(text_BS.shape), ended_B)
