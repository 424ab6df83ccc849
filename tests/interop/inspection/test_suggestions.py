"""The text of suggestions: rules to paste, and comments on everything left open."""

from jaxllm.interop import Rule
from jaxllm.interop.inspection.suggestions import Suggested, Suggestions


def test_the_text_has_rules_doubts_and_what_is_left():
    rule = Rule("wte : V D", "embed.embedding : V D")
    layered = Rule("h.{L}.w : F D", "layers.{L}.mlp.up_proj.kernel : D F", layers=[0, 2])
    suggested = (Suggested(rule, 0.9), Suggested(layered, 0.2, ("matched by shape only",)))
    found = Suggestions(suggested, {"head": "wte"}, {"M": 8}, {"extra": (3, 4)}, ("final_norm",))
    assert str(found).splitlines() == [
        "from jaxllm.interop import Rule",
        "",
        "rules = [",
        '    Rule("wte : V D", "embed.embedding : V D"),',
        "    # ? matched by shape only",
        '    Rule("h.{L}.w : F D", "layers.{L}.mlp.up_proj.kernel : D F", layers=[0, 2]),',
        "]",
        "sizes = {'M': 8}",
        "# ? if they are copies",
        "tied = {'head': 'wte'}",
        "# no rule for extra [3, 4]",
        "# no tensor fills final_norm",
    ]


def test_sizes_that_follow_from_the_config_are_a_function_of_it():
    formulas = {"M": "config.max_len"}
    found = Suggestions((), {}, {"M": 8, "Z": 3}, {"extra": (3, 4)}, (), formulas)
    assert str(found).splitlines() == [
        "rules = [",
        "]",
        "",
        "",
        "def sizes(config):",
        '    return {"M": config.max_len, "Z": 3}',
        "",
        "",
        "# no rule for extra [3, 4]",
    ]


def test_nothing_to_propose_is_said():
    assert str(Suggestions((), {}, {}, {}, ())) == "# every tensor has a rule already"


def test_long_rules_are_broken_into_lines():
    rule = Rule(
        "transformer.blocks.{L}.feed_forward.w_up.weight : F D",
        "layers.{L}.mlp.up_proj.kernel : D F",
    )
    lines = str(Suggested(rule, 0.5)).splitlines()
    assert len(lines) == 4
    assert (lines[0], lines[-1]) == ("    Rule(", "    ),")
