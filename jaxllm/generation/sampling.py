"""Choice of the next token from logits: greedy or by drawing, with penalties and limits."""

import dataclasses
import math

from jaxllm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for choosing the next token; they apply in the order of the fields.

    The order is that of transformers, as are the meanings; the penalties for presence and
    frequency, which transformers does not have, are those of vLLM.

    Args:
        repetition_penalty: applied to tokens that are in the prompt or were generated; above 1
            makes them less likely (Keskar et al., 2019).
        presence_penalty: subtracted from the scores of tokens that were generated.
        frequency_penalty: subtracted from the scores of tokens for each time they were generated.
        temperature: divides the logits; 0 is greedy.
        top_k: keeps the k most likely tokens. None: all.
        top_p: keeps the fewest tokens whose probabilities add up to p (Holtzman et al., 2020).
            None: all.
        min_p: keeps tokens with at least p times the probability of the most likely one.
        typical_p: keeps the fewest tokens of typical information that add up to p (Meister et al.,
            2023). None: all.
        epsilon_cutoff: keeps tokens of at least this probability (Hewitt et al., 2022).
        eta_cutoff: keeps tokens of at least this probability, or less if the entropy is high (the
            same paper).

    Raises:
        UserError: a setting is out of range, or a limit is given with temperature 0.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float = 0.0
    typical_p: float | None = None
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    def __post_init__(self) -> None:
        check_repetition_penalty(self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(given := getattr(self, name)):
                raise UserError(f"{name}={given} must be finite")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be finite and at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} is less than 1")
        for name in ("top_p", "typical_p"):
            given = getattr(self, name)
            if given is not None and not 0 < given <= 1:
                raise UserError(f"{name}={given} is not in (0, 1]")
        for name in ("min_p", "epsilon_cutoff", "eta_cutoff"):
            given = getattr(self, name)
            if not 0 <= given < 1 and (name, given) != ("min_p", 1):
                raise UserError(f"{name}={given} is not in [0, 1)")
        if self.temperature == 0 and (limits := self._limits()):
            raise UserError(f"{' and '.join(limits)} need a temperature above 0, since 0 is greedy")

    def _limits(self) -> list[str]:
        names = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
        return [name for name in names if getattr(self, name) not in (None, 0)]


def check_repetition_penalty(penalty: float) -> None:
    """Raises UserError if a repetition penalty is not positive and finite."""
    if not 0 < penalty < math.inf:
        raise UserError(f"repetition_penalty={penalty} must be finite and above 0")
