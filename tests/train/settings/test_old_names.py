"""Stored configs with fields where they were before."""

from jaxllm.train.settings.old_names import with_new_names


def test_fields_go_to_their_groups_and_others_stay():
    old = {"steps": 3, "loss_chunk": 8, "wandb": "x", "optimizer": {"spike": 2.0, "eps": 1e-6}}
    assert with_new_names(old) == {
        "steps": 3,
        "logging": {"wandb": "x"},
        "optimizer": {"eps": 1e-6, "bad_steps": {"spike": 2.0}},
    }


def test_what_is_new_stays_as_it_is():
    new = {"logging": {"every": 3}, "optimizer": {"bad_steps": {"action": "skip"}}}
    assert with_new_names(new) == new
    assert with_new_names({"optimizer": None}) == {"optimizer": None}
