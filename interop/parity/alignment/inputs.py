"""What two models are compared on: sequences of tokens or of vectors, some with a source."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxllm.config import SequenceConfig
from jaxllm.errors import UserError
from jaxllm.models import Model, TokenModel

from .prompt import random_tokens, random_vectors, read_arrays

# So that a mix-up of source and target shows.
SOURCE_IS_LONGER = 7


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What both sides are given: rows of token ids, BT, or of vectors, BTI.

    Rows of an encoder-decoder have a source each. A mask is 1 at what is compared and 0 at padding;
    by default nothing is padding.
    """

    target: np.ndarray  # all that a model without an encoder is given
    source: np.ndarray | None = None
    target_mask: np.ndarray | None = None  # BT
    source_mask: np.ndarray | None = None  # BS
    wanted: np.ndarray | None = None  # what models of vectors are trained to return

    @classmethod
    def of(cls, given: Any) -> Self:
        """Inputs as they are, or those of an array of tokens or vectors."""
        return given if isinstance(given, cls) else cls(np.asarray(given))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Those of a file, as `prompt.read_arrays` says. Raises UserError for what is none."""
        arrays, known = read_arrays(path), {field.name for field in dataclasses.fields(cls)}
        if "target" not in arrays or not arrays.keys() <= known:
            found = ", ".join(arrays) or "nothing"
            raise UserError(f"{path} has {found}, not target and of {', '.join(sorted(known))}")
        return cls(**arrays)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name, those that there are, for either framework to take."""
        return {
            field.name: array
            for field in dataclasses.fields(self)
            if (array := getattr(self, field.name)) is not None
        }

    @property
    def are_tokens(self) -> bool:
        """Whether the target is of tokens, not of vectors."""
        return self.target.ndim == 2

    @property
    def num_tokens(self) -> int:
        """How many tokens of the target are compared."""
        mask = self.target_mask
        return int(np.prod(self.target.shape[:2])) if mask is None else int(np.count_nonzero(mask))

    def completed(self, model: Model) -> Self:
        """With what a model of vectors is trained to return, which is drawn if it is not given."""
        shape = self.wanted_shape(model)
        if self.wanted is not None or shape is None:
            return self
        return dataclasses.replace(self, wanted=random_vectors(shape, 0))

    def wanted_shape(self, model: Model) -> tuple[int, ...] | None:
        """That of what a model of vectors returns."""
        stack = last_stack(model)
        if not isinstance(stack, SequenceConfig):
            return None
        return (*self.target.shape[: 1 if stack.pooled else 2], stack.output_dim)

    def redrawn(self, model: Model, seed: int) -> Self:
        """Other numbers of the same shapes; what is padding stays so."""
        drawn = {}
        for name, elements in elements_of(model).items():
            batch_size, length = getattr(self, name).shape[:2]
            drawn[name] = elements.draw(batch_size, length, _seed_of(name, seed))
        if self.wanted is not None:
            drawn["wanted"] = random_vectors(self.wanted.shape, seed)
        return dataclasses.replace(self, **drawn)

    def without(self, token: int | None, model: Model) -> Self:
        """Another token in place of this one, where it is not padding."""
        if token is None or not self.are_tokens:
            return self
        changed = {
            name: np.where(array == token, (token + 1) % elements.size, array)
            for name, elements in elements_of(model).items()
            for array in [getattr(self, name)]
        }
        return dataclasses.replace(self, **changed)

    def problems(self, model: Model, masked: Collection[str]) -> list[str]:
        """Why these are no inputs of a model and of a reference that takes masks of these names."""
        wanted, given = elements_of(model), self.arrays
        found = [f"{name} is missing" for name in wanted if name not in given]
        known = {*wanted, *(["wanted"] if self.wanted_shape(model) else [])}
        stray = [name for name in given if name.removesuffix("_mask") not in known]
        found += [f"{name} is not what the model is given" for name in stray]
        for name in (name for name in wanted if name in given):
            is_causal = name == "target" and last_stack(model).attention.causal
            found += wanted[name].problems(name, given[name])
            shape, mask = given[name].shape[:2], given.get(f"{name}_mask")
            if mask is None or found:
                continue
            if mask.shape != shape:
                found.append(f"{name}_mask is {mask.shape}, {name} {shape}")
            elif f"{name}_mask" not in masked and not (is_causal and is_at_end(mask)):
                found.append(f"{name}_mask hides tokens which the reference shows to others")
        if not found and len({len(given[name]) for name in wanted}) > 1:
            found.append(f"{len(given['source'])} rows of source, {len(given['target'])} of target")
        due, array = self.wanted_shape(model), self.wanted
        if not found and array is not None and (array.dtype != np.float32 or array.shape != due):
            found.append(f"wanted are {array.dtype}{array.shape}, not float32{due}")
        return found


def draw(
    model: Model, masked: Collection[str], *, num_tokens: int, batch_size: int, seed: int
) -> Inputs:
    """Random inputs of a model, its last row padded where padding makes sense.

    Sequences have `num_tokens`, or as many as the model has positions for; sources a few more.
    `masked` are the masks that the reference takes.
    """
    drawn: dict[str, np.ndarray] = {}
    for name, elements in elements_of(model).items():
        length = min(num_tokens + SOURCE_IS_LONGER * (name == "source"), elements.longest)
        drawn[name] = elements.draw(batch_size, length, _seed_of(name, seed))
        causal = name == "target" and last_stack(model).attention.causal
        if elements.are_tokens and batch_size > 1 and (causal or f"{name}_mask" in masked):
            mask = np.ones((batch_size, length), np.int32)
            mask[-1, length - length // 4 :] = 0
            drawn[f"{name}_mask"] = mask
    return Inputs(**drawn)


def _seed_of(name: str, seed: int) -> int:
    """Another for sources, which are never their own targets."""
    return seed + 1_000_000 * (name == "source")


def is_at_end(mask_BT: np.ndarray) -> bool:
    """Whether padding is at the end of every row, where causality hides it."""
    return bool((np.diff((mask_BT != 0).astype(int), axis=1) <= 0).all())


@dataclasses.dataclass(frozen=True)
class Elements:
    """What a model takes a sequence of: ids of a vocabulary, or vectors of a width."""

    size: int
    are_tokens: bool
    longest: int  # of a drawn sequence
    limit: int | None  # of any: positions end there

    def draw(self, batch_size: int, length: int, seed: int) -> np.ndarray:
        """A random sequence for each row."""
        if self.are_tokens:
            return random_tokens(self.size, batch_size, length, seed)
        return random_vectors((batch_size, length, self.size), seed)

    def problems(self, name: str, array: np.ndarray) -> Iterator[str]:
        """What is wrong with sequences."""
        shape = f"{array.dtype}{array.shape}"
        is_float = array.dtype == np.float32 and array.shape[2:] == (self.size,)
        if self.are_tokens and (array.ndim != 2 or array.dtype.kind not in "iu" or not array.size):
            yield f"{name} are {shape}, not integers (B, T)"
        elif not self.are_tokens and not (is_float and array.size):
            yield f"{name} are {shape}, not float32 (B, T, {self.size})"
        elif self.are_tokens and (array.min() < 0 or array.max() >= self.size):
            found = f"{name} from {array.min()} to {array.max()}"
            yield f"{found} are not in the vocabulary of {self.size}"
        elif self.limit is not None and array.shape[1] > self.limit:
            yield f"{name} are {array.shape[1]} long, and positions end at {self.limit}"


def last_stack(model: Model) -> Any:
    """The config of the stack that makes a model's outputs: of two stacks, that of the decoder."""
    return getattr(model.config, "decoder", model.config)


def elements_of(model: Model) -> dict[str, Elements]:
    """By the names of `Inputs`, the sequences that a model takes."""
    config: Any = model.config
    decoder, is_tokens = last_stack(model), isinstance(model, TokenModel)
    size = decoder.vocab_size if is_tokens else decoder.input_dim
    target = Elements(size, is_tokens, decoder.max_len, decoder.longest)
    if decoder is config:
        return {"target": target}
    own = config.source_vocab_size or size if is_tokens else config.source_dim
    longest = (decoder if config.share_positions else config.encoder).max_len
    return {"source": Elements(own, is_tokens, longest, config.longest_source), "target": target}
