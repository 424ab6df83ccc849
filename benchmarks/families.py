"""`python benchmarks/families.py [FAMILY ...]`: measures every case and writes docs/families.md.

The tests enforce the tolerances for the same cases; the page reports the measured errors. Given
families, only their cases are measured, and the page keeps its other rows and tables.
"""

import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jax
import numpy as np
import torch
import transformers

from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.parity.execution.float64 import in_float64
from jaxllm.models import Model

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
import encoder_decoder_cases  # noqa: E402
import hf_cases  # noqa: E402
import levels  # noqa: E402
from encoder_decoder_cases import inputs_of, logits_of_original  # noqa: E402
from hf_cases import LENGTH, stored, tokens_of  # noqa: E402
from tiny import relative_l2  # noqa: E402

CASES = {**hf_cases.CASES, **encoder_decoder_cases.CASES}
PAGE = ROOT / "docs" / "families.md"


class Measured(NamedTuple):
    """The measurements of one case."""

    tensors: int
    relative_l2: float  # relative L2 error of the logits against transformers
    largest: float  # largest difference of logits, divided by their root mean square
    differing_bits: int  # after import and export
    not_loaded: int  # keys that `from_pretrained` found missing, unexpected or of the wrong shape


def measure(case: hf_cases.Case | encoder_decoder_cases.Case) -> Measured:
    """Builds the model, imports it, exports it and compares the results."""
    original = case.build()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "original", Path(folder) / "exported"
        original.save_pretrained(before)
        model = load_pretrained(before)
        save_pretrained(model, after)
        theirs, ours = stored(before), stored(after)
        _, info = type(original).from_pretrained(after, output_loading_info=True)
    is_wide = isinstance(case, hf_cases.Case) and case.in_float64
    expected, found = logits_of(original.double() if is_wide else original, model)
    return Measured(
        tensors=len(theirs),
        relative_l2=relative_l2(found, expected),
        largest=float(np.abs(found - expected).max() / np.sqrt(np.mean(np.square(expected)))),
        differing_bits=differing_bits(theirs, ours),
        not_loaded=sum(
            len(info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")
        ),
    )


def logits_of(original: Any, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of transformers and of jaxllm for the same tokens, without padding."""
    if original.config.is_encoder_decoder:
        inputs = inputs_of(original)
        found = jax.jit(encoder_decoder_cases.logits_of)(model, inputs)
        is_token = inputs.is_tgt_BT == 1
        return logits_of_original(original, inputs)[is_token], np.asarray(found)[is_token]
    tokens = tokens_of(original)
    is_wide = next(original.parameters()).dtype == torch.float64
    with torch.no_grad(), in_float64() if is_wide else nullcontext():
        expected = original(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
    found = jax.jit(lambda model, tokens: model(tokens).logits)(model, tokens)
    return expected, np.asarray(found)


def differing_bits(theirs: dict[str, tuple], ours: dict[str, tuple]) -> int:
    """Counts differing bits; a tensor that is missing or has another shape counts in full."""
    count = 0
    for name in theirs.keys() | ours.keys():
        a, b = theirs.get(name), ours.get(name)
        if a is None or b is None or a[:2] != b[:2]:
            count += 8 * max(len(side[2]) for side in (a, b) if side is not None)
        else:
            pair = (np.frombuffer(side[2], np.uint8) for side in (a, b))
            count += int(np.bitwise_count(np.bitwise_xor(*pair)).sum())
    return count


def line(name: str, row: Measured) -> str:
    """Renders the row of a case."""
    return (
        f"| {name} | {row.tensors} | {row.relative_l2:.1e} | {row.largest:.1e} "
        f"| {row.differing_bits} | {row.not_loaded} |"
    )


def kept_lines() -> tuple[dict[str, str], str]:
    """Returns the rows of the page as it is, by case, and the sections after them."""
    first, mark, rest = PAGE.read_text().partition("\n## ")
    rows = {text.split("|")[1].strip(): text for text in first.splitlines() if text[:2] == "| "}
    return rows, mark.lstrip("\n") + rest


def page(rows: dict[str, str]) -> str:
    """Renders the page in Markdown."""
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = [
        "# Families",
        "",
        "This page shows which Hugging Face checkpoints jaxllm imports and exports, and how",
        "close its logits are to those of transformers. Each row is a tiny model of a family,",
        "or of a family with other config fields (`family/case`), with random numbers in every",
        f"tensor. The errors are those of the logits of 2 x {LENGTH} tokens, in float32 on CPU,",
        f"against {versions}. Each model was then exported, compared with the",
        "original bit by bit, and opened by `from_pretrained`. The tests require a relative L2",
        "error of at most 1e-5, and zeros in the last two columns. `qwen3_next` is compared with",
        "transformers in float64: transformers' own float32 is 1.1e-5 away from it.",
        "`python benchmarks/families.py` writes this page, and with the names of families, only",
        "their rows.",
        "",
        "Kimi-K2 (`kimi_k2`) is a DeepSeek-V3 by another `model_type`, for which transformers has",
        "no class: the tests compare it with DeepSeek-V3, as which it is written if its origin is",
        "dropped.",
        "",
        "The text part of multimodal models is read by the family of its text config, and",
        "its logits for text alone are compared in the tests: `gemma3`, `mistral3`, `llava`,",
        "`qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`. Models without a head and the encoder of a T5",
        "alone are in [import and export](import_export.md#models-without-a-head).",
        "",
        "| family / case | tensors | relative L2 | max abs d / rms | differing bits | not loaded |",
        "|---|---|---|---|---|---|",
    ]
    lines += [rows[name] for name in CASES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    chosen = sys.argv[1:]
    rows, others = kept_lines() if chosen else ({}, "")
    for name, case in CASES.items():
        if not chosen or name.partition("/")[0] in chosen:
            measured = measure(case)
            rows[name] = line(name, measured)
            print(name, measured, flush=True)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(f"{page(rows)}\n{others or levels.section(levels.measure_all())}")
