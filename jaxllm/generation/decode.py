"""Generation: continues prompts, greedily or by sampling, with a loop that runs on the device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxllm.config.checks import check_seed
from jaxllm.errors import UserError
from jaxllm.layers.attention.cache import CacheDtype
from jaxllm.layers.vision import MaskedEmbedding
from jaxllm.models import Model, TokenModel

from .continuation import Continuation, Decodes, Follower, Stream
from .loop import Program, Progress, advance, begin, embed_images
from .prompts import (
    batch_size,
    bucket_size,
    check_images,
    check_prompts,
    check_token_model,
    pad_prompts,
)
from .rules import TokenRules
from .sampling import Sampling
from .scores.processors import Processor, Settings
from .scores.settings import stack_settings
from .speculative import Pair, check_draft
from .speculative import advance as advance_drafted
from .speculative import begin as begin_drafted

GREEDY = Sampling()
NO_RULES = TokenRules()
Setting = TypeVar("Setting", Sampling, TokenRules, int)


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    rules: TokenRules | Sequence[TokenRules] = NO_RULES,
    eos_ids: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    num_return_sequences: int = 1,
    return_logprobs: bool = False,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Decodes | None = None,
    processor: Processor | None = None,
    cache_dtype: CacheDtype | None = None,
    images: Sequence[ArrayLike | None] | None = None,
    draft: Model | None = None,
    num_draft_tokens: int = 4,
    stream: Stream | None = None,
) -> list[Continuation]:
    """Continues each prompt, greedily or by sampling.

    An encoder-decoder reads the prompt as its source and generates the target, without the
    `config.start_token`. A prompt gives the same tokens alone and in a batch.

    Args:
        model: the layers may be scanned or not.
        prompts: a list of prompts, each a list of token ids. A text must be encoded first.
        max_new_tokens: maximum number of tokens to return for a prompt.
        sampling: how tokens are chosen, for all prompts or for each; greedy by default.
        rules: tokens that are forced or suppressed, for all prompts or for each.
        eos_ids: end-of-sequence tokens.
        seed: with one for all prompts, a row depends on its index as well.
        num_return_sequences: continuations of each prompt, adjacent in the result.
        return_logprobs: whether to return the log-probability of each token.
        stop_ids: tokens that end a text like `eos_ids`, but that `rules` do not know.
        stop_strings: texts that end a continuation; they need a `tokenizer`.
        tokenizer: decodes tokens, so that continuations have a text.
        processor: changes the scores BV, given the `Text` so far, before sampling.
        cache_dtype: of keys and values, such as "int8". Default: that of the activations.
        images: of each prompt, (I, C, H, W), in the order of its image tokens; None: no image.
        draft: a smaller model of the same vocabulary that proposes tokens: speculative decoding.
        num_draft_tokens: tokens to propose at a time.
        stream: called with a row's index and its next tokens as soon as they are there.

    Raises:
        UserError: an argument is not valid, or the model cannot generate so many tokens.
        NonFiniteError: logits are NaN, so that no token can be chosen.
    """
    model = check_token_model(model)
    check_prompts(model, prompts, max_new_tokens)
    rows = _Rows.of(model, prompts, sampling, rules, seed, num_return_sequences, images)
    settings, ends = rows.settings(max_new_tokens, eos_ids, stop_ids), {*eos_ids, *stop_ids}
    follower = Follower(len(rows.prompts), ends, tokenizer, tuple(stop_strings), stream)
    if draft is not None:
        draft = check_draft(model, draft, prompts, max_new_tokens, num_draft_tokens)
    loop = _Loop.of(model, draft, num_draft_tokens, processor, cache_dtype)
    done = loop.run(rows.padded, max_new_tokens, settings, follower, rows.images)
    return follower.continuations(done, with_log_probs=return_logprobs)


class _Loop(NamedTuple):
    """A decoding loop, with or without a draft model: its functions, program and weights."""

    begin: Callable[..., Progress]
    advance: Callable[..., Progress]
    program: Program | Pair
    params: Any

    @classmethod
    def of(
        cls,
        model: TokenModel,
        draft: TokenModel | None,
        num_draft_tokens: int,
        processor: Processor | None,
        cache_dtype: CacheDtype | None,
    ) -> Self:
        program, params = Program.of(model, processor, cache_dtype)
        if draft is None:
            return cls(begin, advance, program, params)
        drafting, draft_params = Program.of(draft, processor, cache_dtype)
        pair = Pair(program, drafting, num_draft_tokens)
        return cls(begin_drafted, advance_drafted, pair, (params, draft_params))

    def run(
        self,
        prompts: list[Sequence[int]],
        limit: int,
        settings: Settings,
        follower: Follower,
        images_ICHW: np.ndarray | None,
    ) -> Progress:
        """Generates up to `limit` tokens of each row, until the follower has all."""
        steps, room = np.int32(follower.steps or limit), bucket_size(limit)
        tokens, lengths = pad_prompts(prompts)
        given = tokens, lengths, settings, steps, self._see(images_ICHW, tokens, lengths)
        progress = self.begin(self.program, room, self.params, *given)
        while (ended_B := follower.follow(progress)) is not None:
            progress = progress._replace(ended_B=jnp.asarray(ended_B))
            progress = self.advance(self.program, self.params, progress, settings, steps)
        return progress

    def _see(
        self, images_ICHW: np.ndarray | None, tokens_BT: np.ndarray, lengths_B: np.ndarray
    ) -> MaskedEmbedding | None:
        if images_ICHW is None:
            return None
        is_pair = isinstance(self.program, Pair)
        program = self.program.target if isinstance(self.program, Pair) else self.program
        params = self.params[0] if is_pair else self.params
        is_token_BT = np.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        tokens_BT = np.where(is_token_BT, tokens_BT, -1)  # padding is no image token
        return embed_images(program, params, images_ICHW, tokens_BT)


class _Rows(NamedTuple):
    """The rows of a batch: their prompts and settings."""

    prompts: list[Sequence[int]]
    samplings: list[Sampling]
    rules: list[TokenRules]
    seeds: list[tuple[int, int]]  # a seed, and a number that tells rows of the same seed apart
    vocab_size: int
    images: np.ndarray | None = None  # of all rows, in order

    @classmethod
    def of(
        cls,
        model: TokenModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        rules: TokenRules | Sequence[TokenRules],
        seed: int | Sequence[int],
        times: int,
        images: Sequence[ArrayLike | None] | None,
    ) -> Self:
        """Repeats each prompt and its settings. Raises UserError if they do not fit together."""
        if times < 1:
            raise UserError(f"num_return_sequences={times} is less than 1")
        count = len(prompts)
        seen = None if images is None else check_images(model, prompts, images)
        own_rules = _of_each("rules", rules, TokenRules, count)
        for one in dict.fromkeys(own_rules):
            one.check(model.config.vocab_size)
        seeds = _of_each("seed", seed, int, count)
        for one_seed in seeds:
            check_seed(one_seed)
        has_own = isinstance(seed, Sequence)
        pairs = [(row, i) for row in range(count) for i in range(times)]
        samplings = _of_each("sampling", sampling, Sampling, count)
        return cls(
            [prompts[row] for row, _ in pairs],
            [samplings[row] for row, _ in pairs],
            [own_rules[row] for row, _ in pairs],
            [(seeds[row], i if has_own else row * times + i) for row, i in pairs],
            model.config.vocab_size,
            None if seen is None else np.concatenate([seen[row] for row, _ in pairs]),
        )

    @property
    def unused(self) -> int:
        """The number of rows that fill up the batch."""
        return batch_size(len(self.prompts)) - len(self.prompts)

    @property
    def padded(self) -> list[Sequence[int]]:
        """The prompts of all rows."""
        return [*self.prompts, *[[0]] * self.unused]

    def settings(self, limit: int, eos_ids: Sequence[int], stop_ids: Sequence[int]) -> Settings:
        """Returns the settings of all rows; those that fill up the batch generate nothing."""
        return stack_settings(
            self.vocab_size,
            [*self.samplings, *[GREEDY] * self.unused],
            [*self.rules, *[NO_RULES] * self.unused],
            limits=[limit] * len(self.prompts) + [0] * self.unused,
            seeds=[*self.seeds, *[(0, 0)] * self.unused],
            eos_ids=eos_ids,
            stop_ids=stop_ids,
        )


def _of_each(
    name: str, given: Setting | Sequence[Setting], kind: type[Setting], count: int
) -> list[Setting]:
    """Returns the setting of each prompt. Raises UserError if there is not one for each."""
    is_one = isinstance(given, kind) or not isinstance(given, Sequence)
    own: list[Any] = [given] * count if is_one else [*given]  # type: ignore[misc]
    if len(own) != count:
        raise UserError(f"{name} has {len(own)} entries for {count} prompts")
    return own
