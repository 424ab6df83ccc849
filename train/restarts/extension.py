"""Messages on the learning rate of a run that goes on beyond its planned end."""

import optax


def describe_extension(
    before: optax.Schedule, after: optax.Schedule, old_steps: int, steps: int
) -> str:
    """Returns what the learning rate does in a run that goes on beyond its end.

    Args:
        before: the schedule until then.
        after: the schedule of the longer run.
        old_steps: the number of steps until then.
        steps: the number of steps of the longer run.
    """
    rates = before(old_steps - 1), after(old_steps), after(steps - 1)
    ended, now, last = (f"{float(rate):.3g}" for rate in rates)
    return (
        f"extended from {old_steps} to {steps} steps  the learning rate follows the schedule of "
        f"{steps} steps: it ended at {ended}, is {now} in the next step and {last} in the last"
    )
