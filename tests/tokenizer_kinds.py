"""Small tokenizers of every kind, each in a folder as transformers reads it."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = ["the cat and the hat", "Hello, world! 123", "naïve café \N{SNOWMAN}"] * 9
TEXTS = (
    *("the cat", "  two  spaces ", "Hello, world!", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
    *("<|im_start|>user\nhi<|im_end|>\n", "a </s> b", "\N{SNOWMAN} \N{PILE OF POO}", "x"),
)
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
ADDED = [("<s>", 3), ("</s>", 1)]


def byte_level() -> Tokenizer:
    """As GPT-2, Qwen and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer, vocab_size=320, initial_alphabet=alphabet)


def unigram() -> Tokenizer:
    """As T5 and other SentencePiece models have it. Its pieces include the special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer, vocab_size=90, unk_token="<unk>")


def pieces() -> Tokenizer:
    """As Llama 2 and Mistral have it: BPE of words with byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\N{LOWER ONE EIGHTH BLOCK}"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.BpeTrainer, vocab_size=120)


def word_pieces() -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer, vocab_size=120)


def words() -> Tokenizer:
    """Whole words; the special tokens are words of the vocabulary that nothing marks as special."""
    vocabulary = [*SPECIAL, "the", "cat", "a", "b", "x"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _trained(tokenizer: Tokenizer, trainer: type, **options: object) -> Tokenizer:
    tokenizer.train_from_iterator(
        CORPUS, trainer(special_tokens=SPECIAL, show_progress=False, **options)
    )
    return tokenizer


def template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, special_tokens=ADDED)


# The tokenizer, its post-processor, and fields of tokenizer_config.json.
KINDS = {
    "byte-level": (byte_level, None, {}),
    "byte-level, begins": (byte_level, template("<s> $A"), {}),
    "byte-level, Roberta": (
        byte_level,
        processors.RobertaProcessing(("</s>", 1), ("<s>", 3)),
        {},
    ),
    "unigram, ends": (unigram, template("$A </s>"), {}),
    "unigram, begins and ends": (unigram, template("<s> $A </s>"), {}),
    "pieces": (pieces, template("<s> $A"), {}),
    # transformers ignores these fields beside a tokenizer.json, whose post-processor decides.
    "pieces, flags": (pieces, None, {"add_bos_token": True, "add_eos_token": True}),
    "word pieces": (word_pieces, template("<s> $A </s>"), {}),
    "words": (words, None, {}),
    "words, end": (words, template("$A </s>"), {}),
}


def save_tokenizer(kind: str, folder: Path, **config: object) -> Path:
    """Writes `tokenizer.json` and `tokenizer_config.json`; returns the folder."""
    make, post_processor, fields = KINDS[kind]
    tokenizer = make()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    if kind != "words" and not kind.startswith("words"):
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.enable_truncation(8)  # of training; it must not cut what is encoded
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {**NAMES, "tokenizer_class": "PreTrainedTokenizerFast", **fields, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
