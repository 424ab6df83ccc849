"""The model for lm-evaluation-harness: what its Hugging Face backend says of the same requests."""

import json
import warnings

import jax
import numpy as np
import pytest
import torch
import transformers
from tiny import random_model
from tokenizer_kinds import save_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

from jaxllm.errors import UserError
from jaxllm.evaluation.harness import JaxLM
from jaxllm.interop import load_pretrained
from jaxllm.tokenization import load_tokenizer
from jaxllm.train import make_mesh

WORDS = ["the", "cat", "and", "hat", "Hello", "123"]
MAX_LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with random parameters and a tokenizer."""
    folder = save_tokenizer("byte-level, begins", tmp_path_factory.mktemp("llama") / "model")
    config = transformers.LlamaConfig(
        # No other token can be written.
        **{
            "vocab_size": load_tokenizer(str(folder)).vocab_size,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
        },
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_(float(parameter.ndim == 1), 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def ours(folder):
    return JaxLM(str(folder), batch_size=3, max_length=MAX_LENGTH)


def say(number: int, count: int) -> str:
    return " ".join(WORDS[(number + i * (1 + number % 5)) % 6] for i in range(count))


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_log_likelihoods_are_those_of_the_hugging_face_backend(ours, theirs):
    pairs = [
        (say(n, n % 9), f" {say(n + 3, 1 + n % 3)}") for n in range(20)
    ]  # some without context
    pairs += [("the cat ", "and"), (say(1, 30), " hat")]  # a space at the end; longer than allowed
    asked = requests("loglikelihood", pairs)
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = requests("loglikelihood_rolling", [(say(n, 1 + 9 * n),) for n in range(4)])
    found, expected = ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_greedy_continuations_are_those_of_the_hugging_face_backend(ours, theirs):
    settings = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", [(say(n, 2 + n), settings) for n in range(3)])
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked)
    assert all(len(text) > 4 for text in found)
    end = found[0][2:4]
    short = requests("generate_until", [(say(0, 2), {**settings, "until": [end]})])
    assert ours.generate_until(short) == [found[0][: found[0].index(end)]]


@pytest.fixture
def task(tmp_path):
    """A task of multiple choice in a folder, with its data."""
    rows = [
        {"question": say(n, 3), "choices": [say(n + k, 2) for k in range(3)], "answer": n % 3}
        for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = {
        **{"task": "hats", "dataset_path": "json", "output_type": "multiple_choice"},
        **{"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}},
        **{"test_split": "test", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}"},
        **{"doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]},
    }
    (tmp_path / "hats.yaml").write_text(json.dumps(lines))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_a_task_gives_the_same_log_likelihoods_and_accuracy(ours, theirs, task):
    def evaluate(model) -> dict:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lm_eval.simple_evaluate(
                model, tasks=["hats"], task_manager=task, bootstrap_iters=0, log_samples=True
            )

    found, expected = evaluate(ours), evaluate(theirs)
    assert found["results"]["hats"]["acc,none"] == expected["results"]["hats"]["acc,none"]
    scores = [
        [float(one[0]) for row in each["samples"]["hats"] for one in row["filtered_resps"]]
        for each in (found, expected)
    ]
    assert len(scores[0]) == 36
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_a_mesh_changes_nothing(folder, ours):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    asked = requests("loglikelihood", [(say(n, 3), f" {say(n, 2)}") for n in range(5)])
    with jax.set_mesh(mesh):
        model = load_pretrained(folder, mesh=mesh)
        sharded = JaxLM(model, str(folder), batch_size=4, max_length=MAX_LENGTH, mesh=mesh)
        found = sharded.loglikelihood(asked)
    expected = ours.loglikelihood(asked)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-4)


def test_what_cannot_be_scored_is_said(ours):
    with pytest.raises(UserError, match="a continuation has 0 tokens"):
        ours._loglikelihood_tokens([(None, [1], [])])
    settings = {"max_gen_toks": 24}
    with pytest.raises(UserError, match="max_gen_toks=24 is not less than max_length=24"):
        ours.generate_until(requests("generate_until", [("the", settings)]))
    with pytest.raises(UserError, match=r"vocabulary|tokenizer"):
        JaxLM(random_model(vocab_size=96))
