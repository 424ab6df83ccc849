"""Continuous batching: requests enter a running batch as soon as others leave it."""

import functools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config.checks import check_seed
from jaxllm.errors import UserError
from jaxllm.generation.continuation import REASONS, Continuation, check_finite
from jaxllm.generation.decode import GREEDY, NO_RULES
from jaxllm.generation.loop import AT_LIMIT, RUNNING, Program, Progress, advance, begin
from jaxllm.generation.prompts import bucket_size, check_prompts, check_token_model, pad_prompts
from jaxllm.generation.rules import TokenRules
from jaxllm.generation.sampling import Sampling
from jaxllm.generation.scores.processors import Settings
from jaxllm.generation.scores.settings import stack_settings, with_room
from jaxllm.generation.weights import decoding_weights
from jaxllm.layers.attention.cache import CacheDtype
from jaxllm.models import EncoderDecoder, Model
from jaxllm.sharding import to_host

STEPS = 8  # tokens between two looks at which rows have ended


class Request(NamedTuple):
    """A prompt and its settings, as given to `Engine.submit`."""

    number: int
    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    rules: TokenRules
    seed: int


class Engine:
    """Generates for many requests at once, in a fixed number of slots.

    Each request gives the tokens that `generate` gives for it alone. Requests that end make room
    for others after a few steps, so that short ones do not wait for long ones. It runs in this
    process, and the network is not its business: for evaluation and reinforcement learning.

    Args:
        model: a decoder; the layers may be scanned or not.
        slots: requests that are generated at the same time.
        max_len: the most tokens of a request, with its prompt; rounded up to a power of two.
        eos_ids: end-of-sequence tokens of all requests.
        cache_dtype: of keys and values. Default: that of the activations.

    Example:
        engine = Engine(model, slots=16, max_len=1024)
        numbers = [engine.submit(prompt, 100) for prompt in prompts]
        found = engine.run()
        texts = [found[number] for number in numbers]
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        max_len: int,
        eos_ids: Sequence[int] = (),
        cache_dtype: CacheDtype | None = None,
    ):
        self.model = check_token_model(model)
        if isinstance(self.model, EncoderDecoder):
            raise UserError("the slots of an Engine have no room for sources: use `generate`")
        if slots < 1 or max_len < 1:
            raise UserError(f"slots={slots} and max_len={max_len} must be at least 1")
        self.slots, self.eos_ids = slots, tuple(eos_ids)
        self.length = bucket_size(max_len)
        graphdef, self.params = decoding_weights(self.model)
        self.program = Program(graphdef, cache_dtype=cache_dtype)
        self.waiting: deque[Request] = deque()
        self.running: list[Request | None] = [None] * slots
        self.progress: Progress | None = None
        self.settings: Settings | None = None
        self.count = 0

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        rules: TokenRules = NO_RULES,
        seed: int = 0,
    ) -> int:
        """Adds a request; returns its number. See `generate` for the arguments.

        Raises UserError for a request that cannot be generated, as of too many tokens.
        """
        check_prompts(self.model, [prompt], max_new_tokens)
        check_seed(seed)
        rules.check(self.model.config.vocab_size)
        if len(prompt) + max_new_tokens > self.length:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens={max_new_tokens} are more "
                f"than the engine's {self.length} tokens"
            )
        self.waiting.append(Request(self.count, prompt, max_new_tokens, sampling, rules, seed))
        self.count += 1
        return self.count - 1

    def run(self) -> dict[int, Continuation]:
        """Generates until no request is left; returns the continuation of each, by its number."""
        found: dict[int, Continuation] = {}
        while self.waiting or any(self.running):
            found |= self.step()
        return found

    def step(self) -> dict[int, Continuation]:
        """Generates a few tokens of the running requests; returns those that have ended."""
        for slot in range(self.slots):
            if self.running[slot] is None and self.waiting:
                self._enter(slot, self.waiting.popleft())
        if self.progress is None or self.settings is None:
            return {}
        steps = np.int32(STEPS)
        self.progress = advance(self.program, self.params, self.progress, self.settings, steps)
        return self._leave()

    def _enter(self, slot: int, request: Request) -> None:
        """Reads a prompt and puts its row into a slot."""
        settings = stack_settings(
            self.model.config.vocab_size,
            [request.sampling],
            [request.rules],
            limits=[request.max_new_tokens],
            seeds=[(request.seed, 0)],
            eos_ids=self.eos_ids,
        )
        tokens, lengths = pad_prompts([request.prompt])
        room = self.length - tokens.shape[1]
        one = begin(self.program, room, self.params, tokens, lengths, settings, np.int32(0))
        if self.progress is None or self.settings is None:
            self.progress, self.settings = _empty(one, settings, self.slots)
        given = self.progress, self.settings
        self.progress, self.settings = _insert(given, (one, settings), np.int32(slot))
        self.running[slot] = request

    def _leave(self) -> dict[int, Continuation]:
        """Takes the requests that have ended out of their slots."""
        assert self.progress is not None, "requests are running"
        ended_B = to_host(self.progress.ended_B)
        done = [
            slot
            for slot, request in enumerate(self.running)
            if request is not None and ended_B[slot] != RUNNING
        ]
        if not done:
            return {}
        text, log_probs_BS = self.progress.text, to_host(self.progress.log_probs_BS)
        tokens_BS, lengths_B, starts_B = map(to_host, text)
        found = {}
        for slot in done:
            request, own = self.running[slot], slice(int(starts_B[slot]), int(lengths_B[slot]))
            assert request is not None, "chosen above"
            check_finite(np.array([int(ended_B[slot]) in REASONS]))
            found[request.number] = Continuation(
                tokens_BS[slot, own].tolist(),
                REASONS[int(ended_B[slot])],
                log_probs_BS[slot, own].tolist(),
            )
            self.running[slot] = None
        return found


def _empty(one: Progress, settings: Settings, slots: int) -> tuple[Progress, Settings]:
    """Returns slots without a request, with arrays like those of a row."""
    progress, settings = jax.tree.map(
        lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype), (one, settings)
    )
    return progress._replace(ended_B=jnp.full_like(progress.ended_B, AT_LIMIT)), settings


State = tuple[Progress, Settings]


def _insert(slots: State, one: State, slot: np.int32) -> State:
    """Puts a row into a slot; both get the same room for sequences with a bias."""
    (progress, settings), (own, own_settings) = slots, one
    shapes = settings.biased_BWL.shape[1:], own_settings.biased_BWL.shape[1:]
    W, L = map(max, zip(*shapes, strict=True))
    settings, own_settings = with_room(settings, W, L), with_room(own_settings, W, L)
    return _put((progress, settings), (own, own_settings), slot)


@functools.partial(jax.jit, donate_argnums=0)
def _put(slots: State, one: State, slot: Array) -> State:
    return jax.tree.map(lambda x, own: x.at[slot].set(own[0]), slots, one)
