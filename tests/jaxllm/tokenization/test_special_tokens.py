"""Special tokens that a folder names: where they are found, and what is no token."""

import json

import pytest

from jaxllm.errors import UserError
from jaxllm.tokenization.special_tokens import find_eos_ids, named_texts, read_ids, read_json


def write(folder, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_texts_come_from_the_tokenizer_s_files_in_order(tmp_path):
    write(
        tmp_path,
        special_tokens_map={"eos_token": "a", "bos_token": {"content": "b"}, "pad_token": None},
        tokenizer_config={"eos_token": "c", "add_bos_token": True, "image_token": 3},
    )
    assert named_texts(tmp_path) == {"eos": "c", "bos": "b"}
    write(tmp_path, special_tokens_map={"unk_token": 7})
    with pytest.raises(UserError, match=r"special_tokens_map\.json: unk_token is 7; it must be"):
        named_texts(tmp_path)


def test_generation_config_comes_before_the_model_s_config(tmp_path):
    assert find_eos_ids(tmp_path, 9) == ()
    write(tmp_path, config={"eos_token_id": 3})
    assert find_eos_ids(tmp_path, 9) == (3,)
    write(tmp_path, generation_config={"eos_token_id": [5, 0]})
    assert find_eos_ids(tmp_path, 9) == (5, 0)
    write(tmp_path, generation_config={})
    assert find_eos_ids(tmp_path, 9) == (3,)


@pytest.mark.parametrize("given", [9, -1, [], [1, 9], "1", 1.0, True, [None], {"a": 1}])
def test_what_is_no_id_of_the_vocabulary_is_refused(given, tmp_path):
    write(tmp_path, config={"eos_token_id": given})
    with pytest.raises(UserError, match=r"config\.json: eos_token_id is .* from 0 to 8, or a list"):
        read_ids(tmp_path / "config.json", "eos_token_id", 9)


def test_a_file_that_is_named_but_not_there_is_not_taken_for_none(tmp_path):
    """As in a cache of the Hugging Face hub of which a part was deleted."""
    (tmp_path / "generation_config.json").symlink_to(tmp_path / "gone")
    write(tmp_path, config={"eos_token_id": 3})
    with pytest.raises(FileNotFoundError, match="generation_config"):
        find_eos_ids(tmp_path, 9)


def test_files_that_hold_no_object_are_refused(tmp_path):
    file = tmp_path / "config.json"
    assert read_json(file) == {}
    for text, message in (("[]", "the JSON is not an object"), ("{", "not valid JSON")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_json(file)
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"not valid JSON|nested more than 100 levels deep"):
        read_json(file)
