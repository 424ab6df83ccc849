"""A model of jaxllm for lm-evaluation-harness (`lm_eval`, extra `eval`)."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxllm.errors import MissingPackageError, UserError
from jaxllm.generation import Sampling, generate
from jaxllm.hub import local_path
from jaxllm.interop import load_pretrained
from jaxllm.models import Decoder
from jaxllm.params import split
from jaxllm.sharding import named_sharding
from jaxllm.tokenization import Tokenizer, check_tokens, find_tokenizer, load_tokenizer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise MissingPackageError(
        f"jaxllm.evaluation.harness needs lm_eval: pip install 'jaxllm[eval]' ({error})"
    ) from error

NEW_TOKENS = 256  # as its Hugging Face backend, unless a task says otherwise
LEAST_LENGTH = 32  # sequences are padded to few lengths, each of which is compiled once


@register_model("jaxllm")
class JaxLM(TemplateLM):
    """Scores and continues texts as the harness's Hugging Face backend does.

    Args:
        pretrained: a checkpoint in any format or a run; or a Decoder.
        tokenizer: a file, a folder or "bytes", or a Tokenizer; by default the checkpoint's own.
        batch_size: requests at a time.
        max_length: the most tokens that the model sees; by default its `max_len`. Longer texts are
            cut from the left.
        dtype: as for `load_pretrained`, where `pretrained` is a path.
        mesh: shards the model and the rows of a batch; it is set, as by `jax.set_mesh`.

    Raises:
        UserError: the model is no Decoder, or has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | Decoder,
        tokenizer: str | Tokenizer | None = None,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        **_: Any,  # what the harness gives every model, such as a device
    ):
        super().__init__()
        model: Any = pretrained
        if isinstance(pretrained, str):
            model = load_pretrained(pretrained, mesh=mesh, dtype=dtype)
        if not isinstance(model, Decoder):
            raise UserError(f"the harness scores Decoders, but this is a {type(model).__name__}")
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = _find_tokenizer(pretrained, tokenizer, model)
        self._model, self._tokens, self._mesh = model, tokenizer, mesh
        self.batch_size, self.max_length = int(batch_size), int(max_length or model.config.max_len)
        score, params = _scorer(model)
        self._score = functools.partial(score, params)

    @property
    def eot_token_id(self) -> int:
        """The token that ends texts."""
        if self._tokens.eos_id is None:
            raise UserError("the tokenizer names no end-of-sequence token")
        return self._tokens.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return self.eot_token_id if self._tokens.bos_id is None else self._tokens.bos_id

    @property
    def tokenizer_name(self) -> str:
        """A name by which the harness tells tokenizers apart."""
        return self._tokens.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Encodes a text; by default with the tokens of the post-processor, unless it has them."""
        if add_special_tokens is None:
            prefix = self._tokens.decode([self.prefix_token_id])
            add_special_tokens = not string.startswith(prefix)
        if add_special_tokens:
            return self._tokens.encode_prompt(string)
        return self._tokens.encode_chat(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns of each continuation its log-likelihood, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for chosen in self._batches([len(context) + len(end) for _, context, end in requests]):
            rows = [self._cut(*requests[number][1:]) for number in chosen]
            length = _padded(max(len(tokens) for tokens, _ in rows) - 1)
            tokens_BT = np.zeros((self.batch_size, length + 1), np.int32)
            mask_BT = np.zeros((self.batch_size, length), bool)
            for row, (tokens, count) in enumerate(rows):
                tokens_BT[row, : len(tokens)] = tokens
                mask_BT[row, len(tokens) - 1 - count : len(tokens) - 1] = True
            scores_B, greedy_B = map(np.asarray, self._score(*self._placed(tokens_BT, mask_BT)))
            for row, number in enumerate(chosen):
                found[number] = float(scores_B[row]), bool(greedy_B[row])
                if (request := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", request, found[number])
        return found

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """Returns the tokens of a request, and how many at their end are the continuation's."""
        if not continuation or len(continuation) > self.max_length:
            raise UserError(
                f"a continuation has {len(continuation)} tokens; it must have 1 to "
                f"max_length={self.max_length}"
            )
        return (context + continuation)[-(self.max_length + 1) :], len(continuation)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yields the numbers of the requests of each batch, the longest first."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _placed(self, *arrays: np.ndarray) -> list[Any]:
        if self._mesh is None:
            return list(arrays)
        return [jax.device_put(x, named_sharding("BT", x.shape, self._mesh)) for x in arrays]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows if they are longer."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts: list[int] = []
        for request in requests:
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in rolling]
            windows, counts = windows + own, [*counts, len(own)]
        scores = iter(self._loglikelihood_tokens(windows))
        found = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Continues texts up to the first of the texts that end them."""
        found = []
        for request in requests:
            context, settings = request.args
            found.append(self._continue(context, dict(settings)))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        ends = (until,) if isinstance(until, str) else tuple(until)
        most = int(settings.get("max_gen_toks", NEW_TOKENS))
        if most >= self.max_length:
            raise UserError(f"max_gen_toks={most} is not less than max_length={self.max_length}")
        temperature = float(settings.get("temperature") or 0.0)
        if not settings.get("do_sample", temperature > 0):
            temperature = 0.0
        prompt = self.tok_encode(context)[-(self.max_length - most) :]
        (continuation,) = generate(
            self._model,
            [prompt],
            most,
            sampling=Sampling(temperature=temperature),
            eos_ids=(self.eot_token_id,),
            stop_strings=tuple(filter(None, ends)),
            tokenizer=self._tokens,
        )
        special = {self.eot_token_id, *self._tokens.special_ids}
        text = self._tokens.decode([token for token in continuation if token not in special])
        places = [text.find(end) for end in ends if end and end in text]
        return text[: min(places, default=len(text))]


def _padded(length: int) -> int:
    """Returns one of few lengths that is not less: powers of two."""
    return max(LEAST_LENGTH, 1 << (length - 1).bit_length())


def _scorer(model: Decoder) -> tuple[Callable[..., tuple[Array, Array]], dict]:
    """Returns a jitted function of parameters, tokens and a mask, and the parameters.

    It returns the sum of the log-probabilities of the targets that the mask names, B, and whether
    all of these are the most likely.
    """
    bind, params = split(model)

    @jax.jit
    def score(params: dict, tokens_BT: Array, mask_BT: Array) -> tuple[Array, Array]:
        logits_BTV = bind(params)(tokens_BT[:, :-1]).logits.astype(jnp.float32)
        targets_BT = tokens_BT[:, 1:]
        log_probs_BTV = jax.nn.log_softmax(logits_BTV)
        chosen_BT = jnp.take_along_axis(log_probs_BTV, targets_BT[:, :, None], axis=2)[:, :, 0]
        is_greedy_BT = jnp.argmax(logits_BTV, axis=2) == targets_BT
        return jnp.sum(chosen_BT * mask_BT, axis=1), jnp.all(is_greedy_BT | ~mask_BT, axis=1)

    return score, params


def _find_tokenizer(pretrained: str | Decoder, given: str | None, model: Decoder) -> Tokenizer:
    """Returns the tokenizer of a model, by default the one beside its checkpoint."""
    folders = [] if model.origin is None else list(model.origin.folders)
    if isinstance(pretrained, str):
        folders.insert(0, local_path(pretrained))
    found = find_tokenizer(folders) if given is None else given
    tokenizer = load_tokenizer(found)
    check_tokens(tokenizer, model.config, is_chosen=given is not None, option="tokenizer")
    return tokenizer
