"""Inputs of a comparison: sequences of tokens or vectors, with a source for encoder-decoders."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxllm.config import SequenceConfig
from jaxllm.errors import UserError
from jaxllm.models import Model, TokenModel

from .prompt import FurtherText, english_tokens, random_tokens, random_vectors, read_arrays

# Names of arrays in packs and files of earlier versions, and their names now.
FORMER_NAMES = {"wanted": "labels"}

ARRAYS = ("target", "source", "target_mask", "source_mask", "labels")

# Different lengths expose a mix-up of source and target.
SOURCE_IS_LONGER = 7


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of both sides: rows of token ids, BT, or of vectors, BTI.

    Masks are 1 at tokens to compare and 0 at padding; without a mask there is no padding.

    Attributes:
        target: the input of a decoder-only model, or of the decoder.
        source: the input of the encoder; None for models without one.
        target_mask: BT.
        source_mask: BS.
        labels: the vectors that models of vectors are trained to return, BTO or, pooled, BO.
        further: the text of later batches; None: they are random.
    """

    target: np.ndarray
    source: np.ndarray | None = None
    target_mask: np.ndarray | None = None
    source_mask: np.ndarray | None = None
    labels: np.ndarray | None = None
    further: FurtherText | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, given: Any) -> Self:
        """Returns inputs unchanged; takes an array as the target."""
        return given if isinstance(given, cls) else cls(np.asarray(given))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads inputs from a file; `prompt.read_arrays` lists the formats.

        Raises:
            UserError: the file is not of such a format, or its arrays are not those of `Inputs`.
        """
        arrays, known = read_arrays(path), set(ARRAYS)
        if "target" not in arrays or not arrays.keys() <= known | FORMER_NAMES.keys():
            found = ", ".join(arrays) or "nothing"
            raise UserError(
                f"{path} has {found}; it needs target and may have "
                f"{', '.join(sorted(known - {'target'}))}"
            )
        return cls.from_arrays(arrays)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Returns the inputs with these arrays; takes names of earlier versions as well."""
        named: dict[str, Any] = {FORMER_NAMES.get(name, name): x for name, x in arrays.items()}
        return cls(**named)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are given, by name."""
        return {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}

    @property
    def digest(self) -> str:
        """A text that is the same for equal inputs."""
        found = sha256()
        for name, array in self.arrays.items():
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    @property
    def are_tokens(self) -> bool:
        """Whether the target consists of tokens rather than vectors."""
        return self.target.ndim == 2

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the target, without padding."""
        mask = self.target_mask
        return int(np.prod(self.target.shape[:2])) if mask is None else int(np.count_nonzero(mask))

    def with_labels(self, model: Model) -> Self:
        """Adds random labels for a model of vectors, unless they are given."""
        shape = self.labels_shape(model)
        if self.labels is not None or shape is None:
            return self
        return dataclasses.replace(self, labels=random_vectors(shape, 0))

    def labels_shape(self, model: Model) -> tuple[int, ...] | None:
        """Returns the output shape of a model of vectors; None for other models."""
        stack = output_config(model)
        if not isinstance(stack, SequenceConfig):
            return None
        return (*self.target.shape[: 1 if stack.pooled else 2], stack.output_dim)

    def redrawn(self, model: Model, seed: int) -> Self:
        """Returns inputs of the same shapes, with the same padding: further text, or random."""
        drawn: dict[str, Any] = {}
        for name, sequence in sequences_of(model).items():
            batch_size, length = getattr(self, name).shape[:2]
            if self.further is not None and sequence.are_tokens:
                drawn[name] = self.further.draw(name, (batch_size, length), seed)
            else:
                drawn[name] = sequence.draw(batch_size, length, _seed_of(name, seed))
        if self.labels is not None:
            drawn["labels"] = random_vectors(self.labels.shape, seed)
        return dataclasses.replace(self, **drawn)

    def shortened(self, length: int) -> Self:
        """Returns the beginning of every row, with the same share of padding, if it is longer."""
        changed: dict[str, Any] = {}
        for name, array in self.arrays.items():
            whole = array.shape[1] if array.ndim > 1 else 0
            is_mask = name.endswith("_mask")
            if name == "labels" and array.ndim < 3:  # of whole sequences
                continue
            kept = min(whole, length + SOURCE_IS_LONGER * name.startswith("source"))
            columns = np.arange(kept) * whole // kept if is_mask else np.arange(kept)
            changed[name] = array[:, columns]
        return dataclasses.replace(self, **changed)

    def replace_token(self, token: int | None, model: Model) -> Self:
        """Returns the inputs with every `token` replaced by the next one."""
        if token is None or not self.are_tokens:
            return self
        changed: dict[str, Any] = {
            name: np.where(array == token, (token + 1) % sequence.size, array)
            for name, sequence in sequences_of(model).items()
            for array in [getattr(self, name)]
        }
        return dataclasses.replace(self, **changed)

    def problems(self, model: Model, masked: Collection[str]) -> list[str]:
        """Lists why these inputs do not fit a model and its reference; empty if they do.

        Args:
            model: the JAX model.
            masked: names of the masks that the reference takes.
        """
        sequences, given = sequences_of(model), self.arrays
        found = [f"{name} is missing" for name in sequences if name not in given]
        known = {*sequences, *(["labels"] if self.labels_shape(model) else [])}
        stray = [name for name in given if name.removesuffix("_mask") not in known]
        found += [
            f"{name} is given, which a {type(model).__name__} does not take" for name in stray
        ]
        for name in (name for name in sequences if name in given):
            is_causal = name == "target" and output_config(model).attention.causal
            found += sequences[name].problems(name, given[name])
            shape, mask = given[name].shape[:2], given.get(f"{name}_mask")
            if mask is None or found:
                continue
            if mask.shape != shape:
                found.append(f"{name}_mask has shape {mask.shape}, but {name} has {shape}")
            elif f"{name}_mask" not in masked and not (is_causal and is_at_end(mask)):
                found.append(
                    f"{name}_mask hides tokens that the reference, which takes no such mask, "
                    "attends to"
                )
        if not found and len({len(given[name]) for name in sequences}) > 1:
            found.append(
                f"source has {len(given['source'])} rows, but target has {len(given['target'])}"
            )
        due, array = self.labels_shape(model), self.labels
        if not found and array is not None and (array.dtype != np.float32 or array.shape != due):
            found.append(f"labels is {array.dtype}{array.shape}; it must be float32{due}")
        return found


def draw(
    model: Model,
    masked: Collection[str],
    *,
    num_tokens: int,
    batch_size: int,
    seed: int,
    tokenizer: Any = None,
) -> Inputs:
    """Draws random inputs for a model: English text if there is a tokenizer, else tokens.

    Of several rows of tokens, the last is padded if the reference takes a mask or is causal.

    Args:
        model: the JAX model.
        masked: names of the masks that the reference takes.
        num_tokens: length of the target; the source is longer. Both are cut to the number of
            positions of the model.
        batch_size: number of rows.
        seed: seed of the random numbers.
        tokenizer: for English text; None: random tokens.
    """
    drawn: dict[str, Any] = {}
    sequences = sequences_of(model)
    for name, sequence in sequences.items():
        length = min(num_tokens + SOURCE_IS_LONGER * (name == "source"), sequence.longest)
        size = batch_size, length, _seed_of(name, seed)
        is_text = tokenizer is not None and sequence.are_tokens
        drawn[name] = (
            english_tokens(tokenizer, sequence.size, *size) if is_text else sequence.draw(*size)
        )
        causal = name == "target" and output_config(model).attention.causal
        if sequence.are_tokens and batch_size > 1 and (causal or f"{name}_mask" in masked):
            mask = np.ones((batch_size, length), np.int32)
            mask[-1, length - length // 4 :] = 0
            drawn[f"{name}_mask"] = mask
    if tokenizer is not None and isinstance(model, TokenModel):

        def later(name: str, shape: tuple[int, int], number: int) -> np.ndarray:
            size = sequences[name].size, *shape, _seed_of(name, seed)
            return english_tokens(tokenizer, *size, number)

        drawn["further"] = FurtherText("successive windows of the same English text", later)
    return Inputs(**drawn)


def _seed_of(name: str, seed: int) -> int:
    """Returns another seed for sources, so that source and target never coincide."""
    return seed + 1_000_000 * (name == "source")


def is_at_end(mask_BT: np.ndarray) -> bool:
    """Whether all padding is at the end of its row, where a causal mask hides it."""
    return bool((np.diff((mask_BT != 0).astype(int), axis=1) <= 0).all())


@dataclasses.dataclass(frozen=True)
class SequenceSpec:
    """The kind and the limits of an input sequence: token ids, or vectors.

    Attributes:
        size: size of the vocabulary, or width of the vectors.
        are_tokens: whether they are token ids.
        longest: length limit of random sequences.
        limit: number of positions of the model; None: unlimited.
    """

    size: int
    are_tokens: bool
    longest: int
    limit: int | None

    def draw(self, batch_size: int, length: int, seed: int) -> np.ndarray:
        """Draws a random sequence for each row: BT, or BTI."""
        if self.are_tokens:
            return random_tokens(self.size, batch_size, length, seed)
        return random_vectors((batch_size, length, self.size), seed)

    def problems(self, name: str, array: np.ndarray) -> Iterator[str]:
        """Yields what is wrong with the sequences `array` of the input `name`."""
        shape = f"{array.dtype}{array.shape}"
        is_float = array.dtype == np.float32 and array.shape[2:] == (self.size,)
        if self.are_tokens and (array.ndim != 2 or array.dtype.kind not in "iu" or not array.size):
            yield f"{name} is {shape}; it must be integers (B, T)"
        elif not self.are_tokens and not (is_float and array.size):
            yield f"{name} is {shape}; it must be float32 (B, T, {self.size})"
        elif self.are_tokens and (array.min() < 0 or array.max() >= self.size):
            found = f"{name} has token ids from {array.min()} to {array.max()}"
            yield f"{found}; the vocabulary has 0 to {self.size - 1}"
        elif self.limit is not None and array.shape[1] > self.limit:
            yield f"{name} has length {array.shape[1]}; the model has {self.limit} positions"


def output_config(model: Model) -> Any:
    """Returns the config of the stack that computes the outputs: the decoder's if there are two."""
    return getattr(model.config, "decoder", model.config)


def sequences_of(model: Model) -> dict[str, SequenceSpec]:
    """Returns the sequences that a model takes, by the names of `Inputs`."""
    config: Any = model.config
    decoder = output_config(model)
    is_tokens = not isinstance(decoder, SequenceConfig)
    size = decoder.vocab_size if is_tokens else decoder.input_dim
    target = SequenceSpec(size, is_tokens, decoder.max_len, decoder.longest)
    if decoder is config:
        return {"target": target}
    own = config.source_vocab_size or size if is_tokens else config.source_dim
    longest = (decoder if config.share_positions else config.encoder).max_len
    return {
        "source": SequenceSpec(own, is_tokens, longest, config.longest_source),
        "target": target,
    }
