"""Generation by the reference: continuations of prompts, and the logits behind them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.generation import Sampling
from jaxllm.interop.parity.alignment.adapters import outputs_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.references.overrides import attribute
from jaxllm.interop.parity.progress import announce
from jaxllm.numerics.distance import max_abs

from .distances import ELEMENT_FACTOR, Arrays, Distances, measure
from .simulated_rounding import DRAWS
from .torch_trace import prepared

NEW_TOKENS = 16
NUM_BEAMS = 4
# Every filter is active. Only the filters are compared; no token is drawn.
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.9)
NEAR_THE_CUT = 8  # ranks on each side of a filter's cut where noise may decide

# Names of the logits among `Distances`: all, and those that the filters keep.
ALL, KEPT = "all", "kept"


class ReferenceGeneration(NamedTuple):
    """The reference's continuations of prompts, and the logits behind them.

    P is the number of prompts, N the number of new tokens.

    Attributes:
        prompts: token ids of each prompt.
        greedy: continuation of each prompt by greedy search.
        beams: best continuation of each prompt by beam search.
        logits_PNV: logits at each new token of the greedy continuations.
        kept_PNV: which tokens are left by the filters of `SAMPLING`.
        ties: pairs of a row, counted over PN, and a token, for which noise decides whether the
            token is filtered out.
        distances: rounding errors of the logits, and of those that the filters leave.
        noise: how far off a single logit may be.
    """

    prompts: list[list[int]]
    greedy: list[list[int]]
    beams: list[list[int]]
    logits_PNV: np.ndarray
    kept_PNV: np.ndarray
    ties: frozenset[tuple[int, int]]
    distances: Distances
    noise: float


class ReferenceGenerator(NamedTuple):
    """A reference that generates: continues prompts, or writes targets for source prompts."""

    reference: Any
    start_token: int | None  # first token of targets; None: the reference has no encoder

    def decode(self, prompts: Sequence[list[int]], draws: int = DRAWS) -> ReferenceGeneration:
        """Generates by greedy and by beam search, and measures the rounding of the logits.

        Args:
            prompts: token ids of each prompt.
            draws: the number of runs with simulated rounding.
        """
        announce("generation: reference")
        with prepared(self.reference):
            chosen = [self._continue(prompt, 1) for prompt in prompts]
            beams = [self._continue(prompt, NUM_BEAMS)[0] for prompt in prompts]
        greedy = [tokens for tokens, _ in chosen]
        logits_PNV = np.stack([logits for _, logits in chosen])
        V, kept_PNV = logits_PNV.shape[-1], np.isfinite(_filtered(logits_PNV))

        def depart() -> dict[str, np.ndarray]:
            apart_PNV = (self.logits(prompts, greedy) - logits_PNV).astype(np.float32)
            return {ALL: apart_PNV, KEPT: apart_PNV[kept_PNV]}

        def on_draw(departures: Arrays, corrections: Arrays) -> None:
            largest.append(max_abs(departures[ALL], corrections[ALL]))

        largest: list[float] = []
        distances = measure("generation", depart, on_draw, draws=draws)
        noise = ELEMENT_FACTOR * max(largest)
        found = (
            (row, token)
            for row, logits_V in enumerate(logits_PNV.reshape(-1, V))
            for token in _filter_ties(logits_V, noise)
        )
        return ReferenceGeneration(
            list(prompts),
            greedy,
            beams,
            logits_PNV,
            kept_PNV,
            frozenset(found),
            distances,
            noise,
        )

    def logits(
        self, prompts: Sequence[list[int]], continuations: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Returns the logits of given continuations, PNV: one pass for each, without a cache."""
        with prepared(self.reference):
            rows = [
                self._predict(prompt, [new[:-1]])
                for prompt, new in zip(prompts, continuations, strict=True)
            ]
        return np.concatenate(rows)

    def _continue(self, prompt: list[int], num_beams: int) -> tuple[list[int], np.ndarray]:
        """Returns new tokens and, for greedy search, the logits they were chosen by, NV."""
        if hasattr(self.reference, "generation_config"):
            return self._generate(prompt, num_beams)
        return self._search(prompt, num_beams)

    def _generate(self, prompt: list[int], num_beams: int) -> tuple[list[int], np.ndarray]:
        """Continues a prompt with `generate` of transformers."""
        import torch
        from transformers import GenerationConfig

        tokens = torch.tensor([prompt], device=self.reference.device)
        given = self.reference.config
        config = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=num_beams,
            pad_token_id=0,
            decoder_start_token_id=getattr(given, "decoder_start_token_id", None),
            output_scores=True,
            return_dict_in_generate=True,
        )
        # Replaces the checkpoint's settings for sampling, penalties and end-of-sequence tokens.
        with attribute(self.reference, "generation_config", config), torch.no_grad():
            # Without a mask, transformers would treat every token 0 as padding.
            out = self.reference.generate(tokens, attention_mask=torch.ones_like(tokens))
        scores = torch.cat(out.scores).float().cpu().numpy()
        return out.sequences[0, -NEW_TOKENS:].tolist(), scores

    def _search(self, prompt: list[int], num_beams: int) -> tuple[list[int], np.ndarray]:
        """Continues a prompt by a plain beam search without a cache; one beam is greedy search."""
        beams: list[list[int]] = [[]]
        totals, chosen_by = np.zeros(1), []
        for _ in range(NEW_TOKENS):
            logits_WV = self._predict(prompt, beams)[:, -1].astype(np.float64)
            chosen_by.append(logits_WV[0].astype(np.float32))
            log_sums_W = np.logaddexp.reduce(logits_WV, axis=-1)
            scores_WV = totals[:, None] + logits_WV - log_sums_W[:, None]
            best = np.argsort(-scores_WV, axis=None, kind="stable")[:num_beams]
            parents, tokens = np.unravel_index(best, scores_WV.shape)
            beams = [[*beams[w], int(v)] for w, v in zip(parents, tokens, strict=True)]
            totals = scores_WV[parents, tokens]
        return beams[0], np.stack(chosen_by)

    def _predict(self, prompt: list[int], news: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the logits that predict each token of W continuations and the next one, WNV.

        All continuations have the same length, which is N - 1.
        """
        import torch

        if self.start_token is None:
            inputs = Inputs(np.array([[*prompt, *new] for new in news]))
            first = len(prompt) - 1
        else:
            target = np.array([[self.start_token, *new] for new in news])
            inputs, first = Inputs(target, np.array([prompt] * len(news))), 0
        with torch.no_grad():
            return outputs_of(self.reference, inputs)[:, first:].float().cpu().numpy()


def _filtered(logits: np.ndarray) -> np.ndarray:
    """Applies the sampling filters of transformers to logits, ...V."""
    import torch
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    assert SAMPLING.top_k is not None, "given above"
    assert SAMPLING.top_p is not None, "given above"
    filters = LogitsProcessorList(
        [
            TemperatureLogitsWarper(SAMPLING.temperature),
            TopKLogitsWarper(SAMPLING.top_k),
            TopPLogitsWarper(SAMPLING.top_p),
        ]
    )
    no_tokens: Any = torch.empty(0)
    rows = torch.tensor(logits.reshape(-1, logits.shape[-1]))
    return filters(no_tokens, rows).numpy().reshape(logits.shape)


def _filter_ties(logits_V: np.ndarray, noise: float) -> list[int]:
    """Returns the tokens for which noise in the logits decides whether they are filtered out."""
    count = int(np.isfinite(_filtered(logits_V)).sum())
    ranked = np.argsort(-logits_V, kind="stable")
    near = ranked[max(0, count - NEAR_THE_CUT) : count + NEAR_THE_CUT]
    rows = np.repeat(logits_V[None], 2 * len(near), axis=0)
    each = np.arange(len(near))
    rows[2 * each, near] -= np.float32(2 * noise)
    rows[2 * each + 1, near] += np.float32(2 * noise)
    kept = np.isfinite(_filtered(rows))
    return near[kept[2 * each, near] != kept[2 * each + 1, near]].tolist()
