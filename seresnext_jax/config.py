"""The options of a run, their ranges and their help: `Config` and its groups.

A config file contains decisions only; plan.py computes every number that follows from them.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from typing import Annotated, Any, Literal, Self, get_type_hints

from seresnext_jax.errors import UserError


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of an option, in the annotation of its field."""

    low: float
    high: float


Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Backend = Literal["dali-gpu", "dali-cpu", "folder", "synthetic"]
ConvInit = Literal["fan_in", "fan_out", "classic", "fanin", "grp-fanin", "grp-fanout"]
DecayMask = Literal["no-bn", "nvidia-names", "all"]


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    arch: str = "se-resnext101-32x4d"
    """Architecture, one of the names in seresnext_jax/model/network.py."""
    num_classes: Annotated[int, Range(1, 10**7)] = 1000
    """Width of the classifier."""
    conv_init: ConvInit = "fan_in"
    """Fan of the convolutions' Kaiming-normal initialiser, or one of the original's four
    model-config names (classic = grp-fanout = fan_out, fanin = grp-fanin = fan_in)."""
    last_bn_0_init: bool = False
    """Start the scale of each block's last BatchNorm at 0."""
    bn_group_size: Annotated[int, Range(0, 10**6)] = 0
    """Images that are normalised together; divides batch_size. 0: the per-device batch."""


@dataclass(frozen=True)
class InputConfig:
    """The images and how they are read."""

    root: str = ""
    """Folder with train/<class>/<image> and val/<class>/<image>."""
    backend: Backend = "dali-cpu"
    """dali-gpu and dali-cpu decode with DALI, folder with Pillow, synthetic needs no files."""
    image_size: Annotated[int, Range(8, 4096)] = 224
    """Side of the square the network sees, in pixels."""
    eval_margin: Annotated[int, Range(0, 4096)] = 32
    """Evaluation resizes the shorter side to image_size + eval_margin, then crops the centre."""
    workers: Annotated[int, Range(1, 1024)] = 4
    """Decoding threads per device of this process. CPU backends share one pool, capped at the
    number of cores but never smaller than this value."""
    prefetch: Annotated[int, Range(1, 64)] = 2
    """Batches decoded ahead of the step."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with a file that can't be decoded: stop the run, or leave the file out, count it
    and list it."""


@dataclass(frozen=True)
class SizesOfWeights:
    """The image's sizes of a program that evaluates weights: by default theirs."""

    image_size: Annotated[int, Range(0, 4096)] = 0
    """Side of the square the network sees, in pixels; 0: that of the weights."""
    eval_margin: Annotated[int, Range(-1, 4096)] = -1
    """The shorter side is resized to image_size + eval_margin, then the centre is cropped; -1: as
    the weights were evaluated."""

    def resolve(self, image_size: int, eval_margin: int) -> Self:
        """The same with those of the weights in place of the defaults."""
        margin = eval_margin if self.eval_margin < 0 else self.eval_margin
        return replace(self, image_size=self.image_size or image_size, eval_margin=margin)


@dataclass(frozen=True)
class DataConfig(InputConfig):
    """The images, how they are read, and how they vary in training."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in the random training crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the random training crop."""
    flip: bool = True
    """Mirror half of the training images."""


@dataclass(frozen=True)
class OptimConfig:
    """SGD with momentum and its learning-rate schedule."""

    lr: Annotated[float | None, Range(0, 1e6)] = None
    """Peak learning rate, absolute. None: lr_per_256 x optimizer batch / 256."""
    lr_per_256: Annotated[float, Range(0, 1e6)] = 0.256
    """Peak learning rate for each 256 images of the optimizer batch; used where lr is None."""
    momentum: Annotated[float, Range(0, 1)] = 0.875
    """SGD momentum (no dampening)."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: Annotated[float, Range(0, 1)] = 6.103515625e-05
    """Coupled L2 coefficient, added to the gradient before the momentum."""
    decay_mask: DecayMask = "no-bn"
    """What is decayed: no-bn spares every BatchNorm parameter; nvidia-names, the original's rule,
    those whose name contains "bn", which leaves the downsample BatchNorms decayed; all, none."""
    lr_schedule: Literal["cosine", "linear", "step"] = "cosine"
    """Shape after the warm-up."""
    warmup: Annotated[int, Range(0, 10**5)] = 8
    """Epochs of linear warm-up."""
    end_lr: Annotated[float, Range(0, 1e6)] = 0.0
    """Learning rate that the cosine and linear schedules run towards."""
    lr_steps: Annotated[tuple[int, ...], Range(0, 10**5)] = (30, 60, 80)
    """Epochs at which the step schedule multiplies the learning rate by 0.1."""
    lr_update: Literal["epoch", "step"] = "epoch"
    """Change the learning rate once per epoch (the recipes) or at every step."""
    freeze_backbone: bool = False
    """Train the classifier only; everything before it, running statistics included, stays."""
    backbone_lr_multiplier: Annotated[float, Range(0, 1e6)] = 1.0
    """Factor on the learning rate of everything but the classifier."""


@dataclass(frozen=True)
class LossScaleConfig:
    """The dynamic gradient scaler of fp16."""

    init: Annotated[float, Range(1, 2.0**24)] = 128.0
    """First loss scale."""
    growth_interval: Annotated[int, Range(1, 10**9)] = 100
    """Finite steps in a row after which the scale doubles."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When training saves, and what it keeps."""

    every_steps: Annotated[int, Range(0, 10**9)] = 0
    """Also save every N optimizer steps; 0: at the ends of epochs only."""
    every_minutes: Annotated[float, Range(0, 10**6)] = 0.0
    """Also save when N minutes have passed since the last save; 0: never."""
    keep: Annotated[int, Range(-1, 10**6)] = 0
    """0 keeps the last and the best checkpoint, N also the last N, -1 all of them."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes (hosts). Slurm and the usual environment variables are recognised."""

    coordinator: str = ""
    """host:port of process 0. Empty: from the environment, or a single process."""
    num_processes: Annotated[int, Range(0, 10**5)] = 0
    """How many processes take part; 0: from the environment."""
    process_id: Annotated[int, Range(-1, 10**5)] = -1
    """Rank of this process; -1: from the environment."""


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation; a training run has these options, too."""

    data: InputConfig = field(default_factory=InputConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    batch_size: Annotated[int, Range(1, 10**6)] = 128
    """Images per device in one forward pass."""
    precision: Precision = "fp32"
    """fp32 (highest matmul precision), tf32, bf16, or fp16 (training scales the loss). Parameters,
    statistics and loss are float32 in each."""
    label_smoothing: Annotated[float, Range(0, 1)] = 0.1
    """Weight of the uniform distribution in the target of the loss."""
    topk: Annotated[int, Range(1, 10**7)] = 5
    """The second accuracy reported, beside top-1."""
    prof: Annotated[int, Range(-1, 10**9)] = -1
    """Stop each epoch's training, and each evaluation, after N steps; -1: no limit."""
    compilation_cache: str = "~/.cache/seresnext_jax"
    """Folder of JAX's persistent compilation cache; empty: none. The environment's
    JAX_COMPILATION_CACHE_DIR overrides the default."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def validation_smoothing(self) -> float:
        """Label smoothing of the validation loss."""
        return self.label_smoothing


@dataclass(frozen=True)
class Config(EvaluationConfig):
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    epochs: Annotated[int, Range(1, 10**5)] = 90
    """Epochs of the whole schedule."""
    run_epochs: Annotated[int, Range(-1, 10**5)] = -1
    """Train at most this many epochs in this run; the schedule is unchanged. -1: no limit."""
    optimizer_batch_size: Annotated[int, Range(-1, 10**7)] = -1
    """Images per optimizer step over all devices; gradients are accumulated to reach it.
    -1: batch_size x devices."""
    mixup: Annotated[float, Range(0, 100)] = 0.0
    """Alpha of the Beta distribution of mixup; 0: no mixup."""
    use_ema: Annotated[float | None, Range(0, 1)] = None
    """Decay of an exponential moving average of the weights; None: no average."""
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Seed of everything random: initial weights, order, crops, flips, mixup."""
    early_stopping_patience: Annotated[int, Range(-1, 10**5)] = -1
    """Stop after N epochs without a better top-1; -1: never."""
    max_bad_steps: Annotated[int, Range(1, 10**9)] = 20
    """Stop after N steps in a row whose loss or gradients are not finite."""

    workspace: str = "runs/default"
    """Folder for the report, the checkpoints and the plot."""
    raport_file: str = "experiment_raport.json"
    """Name of the DLLogger report in the workspace."""
    resume: str = ""
    """A checkpoint to continue from, or auto: the newest one of this workspace, if there is one."""
    init_from: str = ""
    """Weights to start from: a converted weights folder, a checkpoint, or a torch file."""
    evaluate: bool = False
    """Evaluate once and stop."""
    training_only: bool = False
    """Skip the evaluation after each epoch."""
    no_checkpoints: bool = False
    """Save nothing."""
    print_freq: Annotated[int, Range(1, 10**9)] = 20
    """Steps between two lines of the report."""
    check_data: bool = False
    """Check the dataset as check_data.py does, and stop."""

    @property
    def validation_smoothing(self) -> float:
        """As in the original, there is none where training mixes up."""
        return 0.0 if self.mixup else self.label_smoothing


def option_name(path: str) -> str:
    """The command-line spelling of a field: ``optim.lr_per_256`` → ``--optim.lr-per-256``."""
    return "--" + path.replace("_", "-")


def ranges(schema: type, prefix: str = "") -> dict[str, Range]:
    """The range of each number in a dataclass of options, by its path: ``optim.lr``."""
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if is_dataclass(hint):
            found |= ranges(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        for limit in getattr(hint, "__metadata__", ()):
            if isinstance(limit, Range):
                found[prefix + name] = limit
    return found


def check_ranges(options: Any) -> None:
    """Check each number of a dataclass of options against the range of its field.

    Raises:
      UserError: naming the option, its value and what it may be.
    """
    for path, limit in ranges(type(options)).items():
        value = reduce(getattr, path.split("."), options)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not limit.low <= number <= limit.high:
                raise UserError(
                    f"{option_name(path)} is {number}: it must be between {limit.low:g} and "
                    f"{limit.high:g}"
                )


def check(config: Config) -> None:
    """Check each option on its own, and those that exclude one another.

    Raises:
      UserError: naming the option, its value and what it may be.
    """
    check_ranges(config)
    if config.optimizer_batch_size == 0 or config.prof == 0 or config.run_epochs == 0:
        raise UserError(
            "--optimizer-batch-size, --prof and --run-epochs take -1 or a positive number, not 0"
        )
    for name in ("crop_area", "crop_ratio"):
        low, high = getattr(config.data, name)
        upper = 1 if name == "crop_area" else 100
        if not 0 < low <= high <= upper:
            raise UserError(
                f"{option_name('data.' + name)} is {low:g} {high:g}: "
                f"give two numbers with 0 < first <= second <= {upper}"
            )
    if config.optim.lr_schedule != "step" and config.optim.warmup >= config.epochs:
        raise UserError(
            f"--optim.warmup {config.optim.warmup} leaves no epoch of --epochs {config.epochs} "
            "for the schedule: lower the warm-up"
        )
    if config.evaluate and config.training_only:
        raise UserError("--evaluate and --training-only exclude one another: give one of them")
    if config.training_only and config.early_stopping_patience >= 0:
        raise UserError(
            "--early-stopping-patience needs the evaluation that --training-only leaves out: give "
            "one of them"
        )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A config as ``{"optim.lr": ...}``, in the order of its fields."""
    flat: dict[str, Any] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        path = prefix + item.name
        flat |= flatten(inner, path + ".") if is_dataclass(inner) else {path: inner}
    return flat
