"""The limit on bad images: how many may be left out before a run stops."""

from seresnext_jax.commands import command
from seresnext_jax.errors import CommonError


class TooManyBadImages(CommonError):
    """More images were left out than allowed."""


def check_left_out(what: str, left_out: int, num_images: int, max_share: float) -> None:
    """Check the number of images that an epoch or evaluation has left out so far.

    Args:
      what: the epoch or evaluation, for the message.
      left_out: images left out so far.
      num_images: total number of images in the epoch or evaluation.
      max_share: the share of `num_images` that may be left out, from 0 to 1.

    Raises:
      TooManyBadImages: more were left out.
    """
    if left_out > max_share * num_images:
        raise TooManyBadImages(
            f"{left_out} of the {num_images} images of {what} could not be decoded, more than "
            f"--data.max-bad-share {max_share:g} allows: find them with {command('check_data')} "
            "and replace them, or allow more with a larger --data.max-bad-share"
        )
