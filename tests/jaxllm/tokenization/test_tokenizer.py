"""The roles of a text: what each tokenizer adds to a prompt, a source, a document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinds import CONFIGS
from tokenizer_kinds import KINDS, TEXTS, save_tokenizer

from jaxllm.errors import UserError
from jaxllm.tokenization import ByteTokenizer, load_tokenizer

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT)
def test_byte_tokenizer_round_trip(text):
    ids = ByteTokenizer().encode(text)
    assert ByteTokenizer().decode(ids) == text
    assert all(0 < token < 256 for token in ids)


def test_invalid_utf8_decodes_to_replacement_characters():
    assert ByteTokenizer().decode([104, 255, 105]) == "h\N{REPLACEMENT CHARACTER}i"


def test_nul_is_rejected_by_the_byte_tokenizer():
    with pytest.raises(ValueError, match=r"character 3 of the document 'abc\\x00d' is NUL"):
        ByteTokenizer().encode("abc\0d")


def test_each_role_of_bytes():
    tokenizer, text = ByteTokenizer(), list(b"hi")
    assert tokenizer.encode("hi") == tokenizer.encode_prompt("hi") == text
    assert tokenizer.encode_source("hi") == tokenizer.encode_document("hi") == [*text, 0]


def test_an_encoder_reads_a_source_and_a_decoder_a_prompt():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode_input("hi", CONFIGS["encoder-decoder"]) == [*b"hi", 0]
    assert tokenizer.encode_input("hi", CONFIGS["encoder-decoder"].decoder) == [*b"hi"]


@pytest.mark.parametrize(
    ("kind", "bos", "around"),
    [
        ("byte-level", None, ([], [1])),
        ("byte-level", True, ([3], [1])),
        ("byte-level, begins", None, ([3], [1])),
        ("byte-level, begins", True, ([3], [1])),
        ("byte-level, begins", False, ([], [1])),
        ("unigram, ends", None, ([], [1])),
        ("unigram, begins and ends", None, ([3], [1])),
        ("unigram, begins and ends", False, ([], [1])),
    ],
)
def test_a_document_begins_as_the_post_processor_says_and_ends_once(kind, bos, around, tmp_path):
    tokenizer = load_tokenizer(save_tokenizer(kind, tmp_path))
    plain = tokenizer.encode("the cat")
    assert plain
    before, after = around
    assert tokenizer.encode_document("the cat", bos=bos) == [*before, *plain, *after]


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
@pytest.mark.parametrize("bos", [None, True, False])
def test_many_documents_are_encoded_as_each_alone(kind, bos, tmp_path):
    if kind == "bytes":
        tokenizer, bos = ByteTokenizer(), None
    else:
        tokenizer = load_tokenizer(save_tokenizer(kind, tmp_path))
    texts = [*TEXTS, "", "a <s> b"]
    alone = [tokenizer.encode_document(text, bos=bos) for text in texts]
    assert tokenizer.encode_documents(texts, bos=bos) == alone


def test_the_characters_of_bytes():
    ids, offsets = ByteTokenizer().encode_chat_offsets("a\N{SNOWMAN}\0")
    assert bytes(ids) == "a\N{SNOWMAN}\0".encode()
    assert offsets.tolist() == [[0, 1], *[[1, 2]] * 3, [2, 3]]


def test_a_beginning_that_no_file_names_is_left_out_too(tmp_path):
    folder = save_tokenizer("byte-level, begins", tmp_path, bos_token=None)
    tokenizer = load_tokenizer(folder)
    plain = tokenizer.encode("the cat")
    assert tokenizer.encode_document("the cat") == [3, *plain, 1]
    assert tokenizer.encode_document("the cat", bos=False) == [*plain, 1]


def test_a_document_needs_the_tokens_that_it_begins_and_ends_with(tmp_path):
    folder = save_tokenizer("byte-level", tmp_path, bos_token=None, eos_token=None)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UserError, match=r"no eos_token is named .* set data\.eos; its special"):
        tokenizer.encode_document("the cat")
    tokenizer = load_tokenizer(folder, eos="</s>")
    assert tokenizer.encode_document("the cat")[-1] == 1
    with pytest.raises(UserError, match=r"data\.bos is true, but no bos_token is named"):
        tokenizer.encode_document("the cat", bos=True)
