"""Chat data: what is learned of each conversation, and rows that cannot be used."""

import json

import numpy as np
import pytest
from kinds import WAVES
from tiers import examples
from tiny import random_model
from tokenizer_kinds import save_tokenizer
from transformers import AutoTokenizer

from jaxllm.errors import UserError
from jaxllm.models import build_abstract
from jaxllm.tokenization import ByteTokenizer, load_tokenizer
from jaxllm.train.data.chat import ChatConfig

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
WORDS = ["the", "cat", "and", "hat", "Hello", "123"]


def talk(number: int) -> dict:
    say = lambda count: " ".join(WORDS[(number + i) % 6] for i in range(count))  # noqa: E731
    turns = 1 + number % 3
    roles = ("user", "assistant") * turns
    return {"messages": [{"role": role, "content": say(2 + i)} for i, role in enumerate(roles)]}


def write(folder, records) -> str:
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return str(folder / "talks.jsonl")


def targets_of(batch) -> list[list[int]]:
    """The targets of each document, in order."""
    found = []
    for row in range(len(batch["mask"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            chosen = batch["mask"][row] & (batch["segment_ids"][row] == segment)
            found.append(batch["tokens"][row, 1:][chosen].tolist())
    return sorted(found)


@pytest.mark.parametrize("packing", examples(["best_fit", "padded"], "best_fit"))
def test_targets_are_what_transformers_says_the_assistant_has_written(packing, tmp_path):
    folder = save_tokenizer("byte-level", tmp_path / "model", chat_template=TEMPLATE)
    records = [talk(number) for number in range(20)]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [record["messages"] for record in records],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    expected = [
        [token for token, mask in zip(*pair, strict=True) if mask]
        for pair in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True)
    ]
    config = ChatConfig(
        chat=(write(tmp_path, records),), tokenizer=str(folder), held_out=0, packing=packing
    )
    model = random_model(vocab_size=512)
    rows = config.load(model, 256).train
    batch = rows.take(np.arange(len(rows)))
    assert targets_of(batch) == sorted(expected)
    assert rows.num_tokens == sum(map(len, theirs["input_ids"]))
    assert len(rows) == 20 if packing == "padded" else len(rows) < 10


def test_a_cache_keeps_what_is_learned(tmp_path):
    config = ChatConfig(
        chat=(write(tmp_path, map(talk, range(40))),),
        tokenizer="bytes",
        template="plain",
        held_out=0.2,
        cache=str(tmp_path / "cache"),
    )
    model = random_model(vocab_size=256)
    first, again = config.load(model, 100), config.load(model, 100)
    assert first.fingerprint == again.fingerprint
    for side in ("train", "held_out"):
        rows = [getattr(each, side) for each in (first, again)]
        one, other = (each.take(np.arange(len(each))) for each in rows)
        assert one["mask"].any()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_everything_or_the_completion_alone_is_learned(tmp_path):
    file = write(tmp_path, [{"prompt": "a b", "completion": " c"}])
    options = {"chat": (file,), "tokenizer": "bytes", "template": "plain", "held_out": 0}
    model = random_model(vocab_size=256)
    for train_on, expected in (("assistant", " c\0"), ("all", " b c\0")):
        batch = ChatConfig(**options, train_on=train_on).load(model, 16).train.take([0])
        assert ByteTokenizer().decode(batch["tokens"][0, 1:][batch["mask"][0]]) == expected


def test_turns_of_a_prompt_are_not_learned(tmp_path):
    prompt = [*talk(0)["messages"], {"role": "user", "content": "x"}]
    record = {"prompt": prompt, "completion": [{"role": "assistant", "content": "last"}]}
    file = write(tmp_path, [record])
    folder = save_tokenizer("byte-level", tmp_path / "model")
    unmarked = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    asking = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    for name, template in (("a.jinja", TEMPLATE), ("b.jinja", unmarked + asking)):
        (tmp_path / name).write_text(template)
        config = ChatConfig(
            chat=(file,), tokenizer=str(folder), template=str(tmp_path / name), held_out=0
        )
        batch = config.load(random_model(vocab_size=512), 200).train.take([0])
        written = load_tokenizer(folder).decode(batch["tokens"][0, 1:][batch["mask"][0]])
        assert written == "last<|im_end|>"


def test_rows_that_a_template_refuses_are_named_or_counted(tmp_path, caplog):
    template = "{% if messages | length > 5 %}{{ raise_exception('too many') }}{% endif %}"
    folder = save_tokenizer("byte-level", tmp_path / "model", chat_template=template + TEMPLATE)
    file = write(tmp_path, [talk(0), talk(1), talk(2), {"messages": []}])
    options = {"chat": (file,), "tokenizer": str(folder), "held_out": 0}
    model = random_model(vocab_size=512)
    with pytest.raises(UserError, match=r"talks\.jsonl, line 4: no turn of the assistant"):
        ChatConfig(**options).load(model, 64)
    rows = ChatConfig(**options, bad_rows="skip", packing="padded").load(model, 256).train
    assert len(rows) == 2
    assert "skipped 2 of 4 rows; the first: " in caplog.text


def test_what_chats_need_is_said(tmp_path):
    file, model = write(tmp_path, [talk(0)]), random_model(vocab_size=512)
    folder = save_tokenizer("byte-level", tmp_path / "model")
    with pytest.raises(UserError, match=r"no chat template.*; data\.template names another"):
        ChatConfig(chat=(file,), tokenizer=str(folder)).load(model, 64)
    with pytest.raises(UserError, match=r"chats train a Decoder, but .* is SequenceModel"):
        ChatConfig(chat=(file,)).load(build_abstract(WAVES), 64)
