"""Text shown while a model writes it: whole characters, and how fast they came."""

import re

from jaxllm.commands.generation.writer import Stopwatch, Writer, peak_memory, printer
from jaxllm.interop.loading.generation_config import GenerationConfig
from jaxllm.tokenization import ByteTokenizer


def test_tokens_are_shown_as_whole_characters_that_do_not_act_on_the_terminal(capsys):
    writer = Writer(None, None, ByteTokenizer(), GenerationConfig(eos_ids=(0,)))
    add, finish = printer(writer)
    shown = []
    for token in [*"a猫\x1b[2J\n".encode(), 0]:
        add([token])
        shown.append(capsys.readouterr().out)
    finish()
    assert shown[:4] == ["a", "", "", "猫"]
    assert "".join(shown) == "a猫\\x1b[2J\n"
    assert capsys.readouterr().out == ""


def test_a_stopwatch_tells_the_first_token_from_the_others():
    watch = Stopwatch()
    assert watch.describe().startswith("no tokens; peak memory")
    watch.note([1])
    watch.note([2, 3])
    text = r"3 tokens, the first after \d+\.\d\d s, then [\d,.]+ tokens/s; peak memory [\d,]+ MiB"
    assert re.fullmatch(text, watch.describe())
    assert peak_memory() > 2**20
