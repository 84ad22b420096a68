"""The options of a run, their ranges and their help: `Config` and its groups.

A config file contains only choices; plan.py computes every number that follows from them.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Self, get_type_hints


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of an option; part of the annotation of its field."""

    low: float
    high: float


Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Backend = Literal["dali-gpu", "dali-cpu", "folder", "synthetic"]
ConvInit = Literal["fan_in", "fan_out", "classic", "fanin", "grp-fanin", "grp-fanout"]
DecayMask = Literal["no-bn", "nvidia-names", "all"]
Interpolation = Literal["bilinear", "bicubic", "triangular"]
Augmentation = Literal["none", "autoaugment", "randaugment"]
Optimizer = Literal["sgd", "rmsprop", "adamw", "lamb"]


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    arch: str = "se-resnext101-32x4d"
    """Architecture, such as resnet50; a wrong name is answered with the list."""
    num_classes: Annotated[int, Range(1, 10**7)] = 1000
    """Number of classes: the class folders in train/."""
    conv_init: ConvInit = "fan_in"
    """How random convolutions are scaled: Kaiming-normal with fan_in or fan_out. The original's
    older names work too: fanin and grp-fanin mean fan_in, classic and grp-fanout mean fan_out."""
    last_bn_0_init: bool = False
    """Start the scale of the last BatchNorm in each block at 0 instead of 1."""
    bn_group_size: Annotated[int, Range(0, 10**6)] = 0
    """Number of images that BatchNorm normalises together; must divide batch_size. 0: all images
    of a device."""


@dataclass(frozen=True)
class InputConfig:
    """The images and how they are read."""

    root: str = ""
    """Folder with train/<class>/<image> and val/<class>/<image>, or with shards: train/*.tar and
    val/*.tar (docs/data.md)."""
    backend: Backend = "dali-cpu"
    """What decodes the images: DALI on the GPU or the CPU (dali-gpu, dali-cpu) or Pillow (folder).
    synthetic: random images, no files needed."""
    image_size: Annotated[int, Range(8, 4096)] = 224
    """Width and height of the network's input in pixels."""
    eval_margin: Annotated[int, Range(0, 4096)] = 32
    """For evaluation the shorter side is resized to image_size + eval_margin pixels, then the
    centre is cropped."""
    interpolation: Interpolation = "bilinear"
    """How images are resized, antialiased in every backend. triangular, DALI's name for antialiased
    bilinear, gives the pixels of bilinear."""
    workers: Annotated[int, Range(1, 1024)] = 4
    """Decoding threads per device. The CPU backends of a host share one pool, capped at its number
    of cores but never smaller than this value."""
    prefetch: Annotated[int, Range(1, 64)] = 2
    """Number of batches that are decoded in advance."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with a file that can't be decoded: stop the run, or leave the file out, and count
    and list it."""
    max_bad_share: Annotated[float, Range(0, 1)] = 0.1
    """With on_bad_image skip: stop when more than this share of the images of an epoch or an
    evaluation could not be decoded."""
    exif_orientation: bool = False
    """Whether to turn photos upright by their EXIF orientation. The original does not."""
    index: str = "~/.cache/seresnext_jax/index"
    """Folder that keeps the list of files and their image sizes for the next start, if there are at
    least 10,000 images; empty: none."""


@dataclass(frozen=True)
class SizesOfWeights:
    """How images are resized to evaluate weights; by default as stored with them."""

    image_size: Annotated[int, Range(0, 4096)] = 0
    """Width and height of the network's input in pixels; 0: as stored with the weights."""
    eval_margin: Annotated[int, Range(-1, 4096)] = -1
    """The shorter side is resized to image_size + eval_margin pixels, then the centre is cropped.
    -1: as stored with the weights."""
    interpolation: Interpolation | None = None
    """How images are resized, antialiased. None: as stored with the weights."""

    def resolve(self, image_size: int, eval_margin: int, interpolation: Interpolation) -> Self:
        """Replace the defaults with the values that are stored with the weights."""
        return replace(
            self,
            image_size=self.image_size or image_size,
            eval_margin=eval_margin if self.eval_margin < 0 else self.eval_margin,
            interpolation=self.interpolation or interpolation,
        )


@dataclass(frozen=True)
class DataConfig(InputConfig):
    """The images, how they are read, and how they are augmented for training."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the random training crop, as a fraction of the image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of the random training crop."""
    shards_at_once: Annotated[int, Range(0, 10**6)] = 0
    """Only with shards: read this many shards at a time, each from beginning to end, which is
    faster on network disks. 0: all images in random order."""
    flip: bool = True
    """Whether to mirror half of the training images, chosen at random."""
    augmentation: Augmentation = "none"
    """autoaugment: AutoAugment's policy for ImageNet, as in the original; randaugment: random
    operations of equal strength. Both are applied to the cropped image, the same in every
    backend."""
    randaugment_num_ops: Annotated[int, Range(1, 16)] = 2
    """Operations of randaugment per image."""
    randaugment_magnitude: Annotated[int, Range(0, 30)] = 9
    """Strength of randaugment's operations, 0 to 30."""
    random_erasing: Annotated[float, Range(0, 1)] = 0.0
    """Probability that a random rectangle of an image is replaced by the mean colour."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    optimizer: Optimizer = "sgd"
    """sgd and rmsprop as in PyTorch; adamw and lamb as in optax. All but sgd need their own
    learning rate, and adamw and lamb their own weight decay."""
    lr: Annotated[float | None, Range(0, 1e6)] = None
    """Highest learning rate. None: lr_per_256 x optimizer batch / 256."""
    lr_per_256: Annotated[float, Range(0, 1e6)] = 0.256
    """Highest learning rate per 256 images of the optimizer batch; ignored if lr is given."""
    momentum: Annotated[float, Range(0, 1)] = 0.875
    """Momentum of sgd (without dampening) and rmsprop."""
    nesterov: bool = False
    """Use Nesterov momentum with sgd."""
    rmsprop_alpha: Annotated[float, Range(0, 1)] = 0.9
    """Decay of rmsprop's average of the squared gradients."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of the gradients and the squared gradients of adamw and lamb."""
    eps: Annotated[float | None, Range(1e-20, 1)] = None
    """Added to the square root of the averaged squares, so that no update is 0 / 0. None: 1e-3 for
    rmsprop, 1e-8 for adamw, 1e-6 for lamb."""
    clip_norm: Annotated[float, Range(0, 1e6)] = 0.0
    """Clip the gradient of a step to this norm over all weights; 0: no clipping."""
    weight_decay: Annotated[float, Range(0, 1)] = 6.103515625e-05
    """Weight decay, added to the gradient by sgd and rmsprop, to the update by adamw and lamb."""
    decay_mask: DecayMask = "no-bn"
    """Which parameters decay. no-bn: all except those of BatchNorm; nvidia-names: all except those
    with "bn" in their name (the original's rule; downsample BatchNorms decay); all: each one."""
    lr_schedule: Literal["cosine", "linear", "step"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[int, Range(0, 10**5)] = 8
    """Epochs in which the learning rate rises linearly at the beginning."""
    end_lr: Annotated[float, Range(0, 1e6)] = 0.0
    """Final learning rate of the cosine and linear schedules."""
    lr_steps: Annotated[tuple[int, ...], Range(0, 10**5)] = (30, 60, 80)
    """Epochs at which the step schedule multiplies the learning rate by 0.1."""
    lr_update: Literal["epoch", "step"] = "epoch"
    """Change the learning rate once per epoch (as the recipes do) or at every step."""
    freeze_backbone: bool = False
    """Train only the classifier; all other weights and BatchNorm statistics stay unchanged."""
    backbone_lr_multiplier: Annotated[float, Range(0, 1e6)] = 1.0
    """Multiplies the learning rate of everything except the classifier."""


@dataclass(frozen=True)
class LossScaleConfig:
    """The dynamic loss scale of fp16."""

    init: Annotated[float, Range(1, 2.0**24)] = 128.0
    """Loss scale at the beginning, and after a resume with another precision."""
    growth_interval: Annotated[int, Range(1, 10**9)] = 100
    """The scale doubles after this many steps in a row with finite gradients."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When training saves checkpoints, and which it keeps."""

    every_steps: Annotated[int, Range(0, 10**9)] = 0
    """Also save every N optimizer steps; 0: only after each epoch."""
    every_minutes: Annotated[float, Range(0, 10**6)] = 0.0
    """Also save N minutes after the last save; 0: only after each epoch."""
    keep: Annotated[int, Range(-1, 10**6)] = 0
    """0: keep the last and the best checkpoint; N: the last N and the best; -1: all."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes (hosts). The variables of Slurm, Open MPI and torchrun are recognised."""

    coordinator: str = ""
    """host:port of process 0. Empty: taken from the environment, else a single process."""
    num_processes: Annotated[int, Range(0, 10**5)] = 0
    """Number of processes; 0: taken from the environment."""
    process_id: Annotated[int, Range(-1, 10**5)] = -1
    """Number of this process, from 0; -1: taken from the environment."""
    gpu_affinity: bool = False
    """Bind each process to CPU cores near its GPUs, for one process per GPU or socket. Processes
    with the same cores divide them."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The options of an evaluation; a training run has them, too."""

    data: InputConfig = field(default_factory=InputConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    batch_size: Annotated[int, Range(1, 10**6)] = 128
    """Images per device in one forward pass."""
    precision: Precision = "fp32"
    """Precision of the computation: fp32, tf32, bf16, or fp16 (training scales the loss). Weights,
    BatchNorm statistics and loss are always float32."""
    label_smoothing: Annotated[float, Range(0, 1)] = 0.1
    """Label smoothing of the loss: the probability that is spread evenly over all classes."""
    topk: Annotated[int, Range(1, 10**7)] = 5
    """Also report the top-k accuracy for this k, at most the number of classes."""
    prof: Annotated[int, Range(-1, 10**9)] = -1
    """Stop each epoch and each evaluation after N steps, for a quick try; -1: no limit."""
    compilation_cache: str = "~/.cache/seresnext_jax"
    """Folder where JAX keeps compiled programs for the next start; empty: none. The environment
    variable JAX_COMPILATION_CACHE_DIR overrides the default."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def validation_smoothing(self) -> float:
        """Label smoothing of the validation loss."""
        return self.label_smoothing


@dataclass(frozen=True)
class Config(EvaluationConfig):
    """The options of a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    epochs: Annotated[int, Range(1, 10**5)] = 90
    """Number of epochs to train; the learning-rate schedule spans them all."""
    run_epochs: Annotated[int, Range(-1, 10**5)] = -1
    """Train at most this many epochs in this run; the schedule is unchanged. -1: no limit."""
    optimizer_batch_size: Annotated[int, Range(-1, 10**7)] = -1
    """Images per optimizer step, over all devices; gradients are accumulated over several forward
    passes to reach it. -1: batch_size x devices, one pass."""
    mixup: Annotated[float, Range(0, 100)] = 0.0
    """Strength of mixup: alpha of its Beta distribution; 0: no mixup."""
    cutmix: Annotated[float, Range(0, 100)] = 0.0
    """Strength of CutMix: alpha of its Beta distribution, usually 1; 0: no CutMix. With both, each
    batch of a device gets mixup or CutMix, with equal probability."""
    use_ema: Annotated[float | None, Range(0, 1)] = None
    """Also keep and evaluate an exponential moving average of the weights with this decay, such as
    0.9999. It is updated once per optimizer step. None: no average."""
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Seed for everything random: initial weights, image order, crops, augmentation."""
    early_stopping_patience: Annotated[int, Range(-1, 10**5)] = -1
    """Stop after N epochs without a better top-1 accuracy; -1: never."""
    max_bad_steps: Annotated[int, Range(1, 10**9)] = 20
    """Stop after N steps in a row whose loss or gradients are not finite, or that had no image
    that could be decoded."""

    workspace: str = "runs/default"
    """Folder for the report, the checkpoints and the plots."""
    raport_file: str = "experiment_raport.json"
    """Name of the report in NVIDIA's DLLogger format, in the workspace."""
    report_to: tuple[str, ...] = ()
    """Also report to tensorboard (event files in the workspace), wandb (Weights & Biases), or
    both."""
    resume: str = ""
    """Checkpoint to continue from; auto: the newest one in the workspace, or a new run if there is
    none. The classes must be the same."""
    init_from: str = ""
    """Weights for a new run: a weights folder, a checkpoint or a PyTorch file. If the data has
    other classes, the classifier starts from random weights."""
    evaluate: bool = False
    """Evaluate the weights that resume or init_from names, and stop."""
    training_only: bool = False
    """Do not evaluate after each epoch."""
    no_checkpoints: bool = False
    """Save no checkpoints."""
    print_freq: Annotated[int, Range(1, 10**9)] = 20
    """Report every N steps."""
    check_data: bool = False
    """Check the dataset as check_data.py does, and stop."""

    @property
    def validation_smoothing(self) -> float:
        """Label smoothing of the validation loss; as in the original, none if images are mixed."""
        return 0.0 if self.mixup or self.cutmix else self.label_smoothing


def option_name(path: str) -> str:
    """The command-line spelling of a field: ``optim.lr_per_256`` → ``--optim.lr-per-256``."""
    return "--" + path.replace("_", "-")


def ranges(schema: type, prefix: str = "") -> dict[str, Range]:
    """The range of each number in a dataclass of options, by its path such as ``optim.lr``."""
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if is_dataclass(hint):
            found |= ranges(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        for limit in getattr(hint, "__metadata__", ()):
            if isinstance(limit, Range):
                found[prefix + name] = limit
    return found


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A config as a flat dictionary: ``{"optim.lr": ...}``."""
    flat: dict[str, Any] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        path = prefix + item.name
        flat |= flatten(inner, path + ".") if is_dataclass(inner) else {path: inner}
    return flat
