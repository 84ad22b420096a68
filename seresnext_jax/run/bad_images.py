"""What a training run saves when its images can no longer be read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.data.gone import DataGone
from seresnext_jax.data.limit import TooManyBadImages
from seresnext_jax.plan import Plan
from seresnext_jax.run.log import TrainLog
from seresnext_jax.run.saver import Saver
from seresnext_jax.training.state import TrainState


@contextmanager
def saving_before_bad_images(
    saver: Saver, plan: Plan, progress: Progress, log: TrainLog, state: Callable[[], TrainState]
) -> Iterator[None]:
    """If too many bad images or a lost dataset end the block, save the last good state.

    If the dataset is lost to one of several processes, nothing is saved: a save needs them all.

    Args:
      state: returns the newest state.
    """
    try:
        yield
    except (TooManyBadImages, DataGone) as error:
        if isinstance(error, TooManyBadImages) or jax.process_count() == 1:
            log.forget_empty_steps()
            last = _after_last_good_step(state(), plan)
            if int(last.step) and saver.saves:
                saver.save(last, progress)
                saver.close()
                raise type(error)(
                    f"{error}; the state after step {int(last.step)} is saved: continue with "
                    "--resume auto"
                ) from error
        raise


def _after_last_good_step(state: TrainState, plan: Plan) -> TrainState:
    """The state without the bad steps at its end, which changed nothing.

    A resumed run repeats them. Bad steps of an earlier epoch still count.
    """
    epoch_steps = (int(state.step) - 1) % plan.steps_per_epoch + 1
    empty = min(int(state.bad_steps), epoch_steps)
    if not empty:
        return state
    return replace(
        state,
        step=state.step - empty,
        skipped_steps=state.skipped_steps - empty,
        bad_steps=state.bad_steps - empty,
    )
