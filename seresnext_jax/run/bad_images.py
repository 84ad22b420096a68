"""What a training run saves when its images can no longer be read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.data.gone import DataGone
from seresnext_jax.data.limit import TooManyBadImages
from seresnext_jax.run.log import TrainLog
from seresnext_jax.run.saver import Saver
from seresnext_jax.training.state import TrainState


@contextmanager
def saving_before_bad_images(
    saver: Saver, progress: Progress, log: TrainLog, state: Callable[[], TrainState]
) -> Iterator[None]:
    """If too many bad images or a lost dataset end the block, save the state before them.

    If the dataset is lost to one of several processes, nothing is saved: a save needs them all.

    Args:
      state: returns the newest state.
    """
    try:
        yield
    except (TooManyBadImages, DataGone) as error:
        if isinstance(error, TooManyBadImages) or jax.process_count() == 1:
            last = _without_empty_steps(state(), log.forget_empty_steps())
            if int(last.step) and saver.saves:
                saver.save(last, progress)
                saver.close()
                raise type(error)(
                    f"{error}; the state after step {int(last.step)} is saved: continue with "
                    "--resume auto"
                ) from error
        raise


def _without_empty_steps(state: TrainState, count: int) -> TrainState:
    """The state before its last `count` steps, which had no image and changed only counters."""
    return replace(
        state,
        step=state.step - count,
        skipped_steps=state.skipped_steps - count,
        bad_steps=state.bad_steps - count,
    )
