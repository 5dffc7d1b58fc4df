"""Options that several commands share, each declared once. A command's docstring describes the options that are its own.

An option for every command on models is a line in :class:`ModelOptions`, and its help a line in the docstring. A command with
another default declares the option again, with its own help.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, Token, convert

from shiftscope.cli.values import read_settings
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.runtime.executors import Executor

__all__ = [
    "AsJson",
    "AuditOptions",
    "CertifyOptions",
    "ExecutorOptions",
    "FixOptions",
    "Flag",
    "ModelName",
    "OF_THE_MODEL",
    "ModelOptions",
    "PageOptions",
    "Several",
    "StudyOptions",
    "Wide",
]

#: Memory that a process needs to train one network of the source's family, in bytes.
BYTES_PER_WORKER = 3 << 30

MODEL_GROUP = Group("Model", sort_key=1)
IMAGE_GROUP = Group("Images and shifts", sort_key=2)
COMPUTE_GROUP = Group("Computing", sort_key=3)
OUTPUT_GROUP = Group("Output", sort_key=4)

#: An option without a value.
Flag = Parameter(negative="", show_default=False)
#: An option that may be repeated.
Several = Parameter(negative="", show_default=False)


def _split_at_commas(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert values that are separated by commas, spaces or both."""
    return convert(kind, [token.evolve(value=value) for token in tokens for value in token.value.split(",") if value])


#: An option that takes several numbers, as in `--mean 0.5 0.5 0.5` or `--mean 0.5,0.5,0.5`, or is repeated.
Numbers = Parameter(negative="", show_default=False, consume_multiple=True, converter=_split_at_commas)

AsJson = Annotated[bool, Flag, Parameter(name="--json", group=OUTPUT_GROUP, help="Print JSON instead of tables.")]
Wide = Annotated[
    bool,
    Flag,
    Parameter(name="--wide", group=OUTPUT_GROUP, help="Print every column and every row, with complete intervals, however wide."),
]
#: Options on images whose help differs between commands, because their defaults do.
Count = Annotated[int | None, Parameter(group=IMAGE_GROUP)]
OneBorder = Annotated[Literal["zero", "crop", "circular"] | None, Parameter(group=IMAGE_GROUP)]
ModelName = Annotated[
    str,
    Parameter(
        help="`module:factory` or `file.py:factory` (your function that returns the model), `timm:NAME`, "
        "`timm:hf-hub:OWNER/NAME`, `torchvision:NAME`, `hf:OWNER/NAME` or `hf:FOLDER` (Hugging Face transformers), the folder of "
        "a study's run, a file that `shiftscope fix` wrote, a .pt2 or an .onnx file."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where data sets are.

    Parameters
    ----------
    data_dir
        Local folder that holds the data set. By default the folder that the environment variable SHIFTSCOPE_DATA names.
    """

    data_dir: Annotated[Path | None, Parameter(group=IMAGE_GROUP)] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where to compute.

    Parameters
    ----------
    device
        Device to compute on: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """

    device: Annotated[str, Parameter(group=COMPUTE_GROUP)] = "auto"

    def torch_device(self) -> str:
        """Return the device's name for PyTorch.

        Raises:
            InputError: there is no such device.
        """
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu" or (self.device.partition(":")[0] == "cuda" and torch.cuda.is_available()):
            return self.device
        raise InputError(
            f"`device` must be auto, cpu or an available cuda device, got {self.device!r}.", "Leave it out to take the best."
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PageOptions(DataOptions, DeviceOptions):
    """Options of a command that writes a page."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExecutorOptions(DeviceOptions):
    """How to run jobs at once.

    Parameters
    ----------
    executor
        Run jobs in `processes` of this machine, one for each GPU if it computes on several; as tasks of a Ray cluster (`ray`); or
        as jobs of Slurm (`submitit`).
    address
        Address of a running Ray cluster. By default a cluster is started on this machine.
    gpus
        GPUs for each job: a share of one on a Ray cluster, such as 0.25, or a whole number with submitit.
    submit
        Parameter of submitit, such as slurm_partition=gpu, timeout_min=480 or mem_gb=16. Repeatable.
    """

    executor: Annotated[Literal["processes", "ray", "submitit"], Parameter(group=COMPUTE_GROUP)] = "processes"
    address: Annotated[str | None, Parameter(group=COMPUTE_GROUP)] = None
    gpus: Annotated[float, Parameter(group=COMPUTE_GROUP)] = 0.0
    submit: Annotated[tuple[str, ...], Several, Parameter(group=COMPUTE_GROUP)] = ()

    def job_device(self) -> str:
        """Return the device of a job; a share of a GPU asks for one."""
        return "cuda" if self.gpus else self.torch_device()

    def start(self, workers: int | None) -> Executor | None:
        """Return what runs jobs at once; None to run them in this process.

        Args:
            workers: number of jobs at once; None for as many as cores and memory allow.

        Raises:
            InputError: options of an executor without it.
        """
        if self.submit and self.executor != "submitit":
            raise InputError("`--submit` is for submitit only.", "Add `--executor submitit`.")
        if self.address is not None and self.executor != "ray":
            raise InputError("`--address` is for a Ray cluster only.", "Add `--executor ray`.")
        if self.executor == "ray":
            from shiftscope.runtime.ray_executor import Ray

            return Ray(self.address, workers, self.gpus)
        if self.executor == "submitit":
            return self._submitit(workers)
        if self.gpus:
            raise InputError("`--gpus` is for jobs of a cluster only.", "Add `--executor ray` or `--executor submitit`.")
        return self._processes(workers)

    def _submitit(self, workers: int | None) -> Executor:
        from shiftscope.runtime.submitit_executor import Submitit

        if self.gpus != int(self.gpus):
            raise InputError(f"`gpus` must be a whole number with submitit, got {self.gpus:g}.", "Shares need `--executor ray`.")
        return Submitit(workers, int(self.gpus), read_settings(self.submit, "submit", "timeout_min=480"))

    def _processes(self, workers: int | None) -> Executor | None:
        from shiftscope.runtime.executors import Processes, default_workers, visible_gpus

        gpus = visible_gpus() if self.job_device() == "cuda" else ()
        if workers is None:
            workers = default_workers(BYTES_PER_WORKER) if self.job_device() == "cpu" else max(1, len(gpus))
            if self.job_device() != "cpu" and workers == 1:
                return None
        elif workers == 1:
            return None
        return Processes(workers, gpus if len(gpus) > 1 else ())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StudyOptions(PageOptions, ExecutorOptions):
    """Options of a command that runs a study and writes its page."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions(DataOptions, DeviceOptions):
    """Options of every command on models.

    Parameters
    ----------
    run
        Run of a study, such as factor=8,seed=0, if MODEL is the study's folder; `shiftscope list FOLDER` shows the names.
    weights
        Weights for a model that code makes: a safetensors file, a checkpoint of PyTorch or Lightning, or `pretrained` to download
        those of timm or torchvision. By default the factory's own.
    size
        Size of the model's input, in pixels: one length for both sides, or height and width, such as 256x128. By default the
        model's own.
    mean
        Mean per channel, subtracted from the images before they reach the model; one number per channel. By default the model's
        own.
    std
        Standard deviation per channel, by which the images are then divided; one number per channel. By default the model's own.
    output
        Name or position of the output to measure, for a model that returns several. By default the only one.
    embedding
        Treat the outputs as embeddings instead of class scores.
    trust
        Run code that a model's file names or holds: a .pt2 archive, or your own factory in a file of `shiftscope fix`.
    data
        Images to measure: `digits`, `mnist`, `cifar10`, a Hugging Face id, or a folder of images (with a subfolder per class) or
        parquet files. By default the images that a study trained the model on, else the digits.
    images
        Number of images to measure, picked with a fixed seed. By default 64.
    mode
        What comes in at the border that a shift uncovers: the background (`zero`), the photo around the model's input (`crop`),
        or the content that left on the other side (`circular`). By default `crop` for photos that are larger than the input, else
        `zero`.
    max_shift
        Largest shift, in pixels. By default 8, or less if the canvas or the photo leaves less room around the input.
    seed
        Seed of the random shifts.
    """

    run: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None
    weights: Annotated[Path | None, Parameter(group=MODEL_GROUP)] = None
    size: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None
    mean: Annotated[tuple[float, ...] | None, Numbers, Parameter(group=MODEL_GROUP)] = None
    std: Annotated[tuple[float, ...] | None, Numbers, Parameter(group=MODEL_GROUP)] = None
    output: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None
    embedding: Annotated[bool, Flag, Parameter(group=MODEL_GROUP)] = False
    trust: Annotated[bool, Flag, Parameter(group=MODEL_GROUP)] = False
    data: Annotated[str | None, Parameter(group=IMAGE_GROUP)] = None
    images: Count = None
    mode: OneBorder = None
    max_shift: Count = None
    seed: Annotated[int, Parameter(group=IMAGE_GROUP)] = 0
    as_json: AsJson = False
    wide: Wide = False

    def subject(self, model: str, *, images: int) -> dict[str, Any]:
        """Return the settings of :class:`shiftscope.audits.subject.SubjectSpec`.

        Args:
            model: as the command names it.
            images: their number, unless the user gives another.

        Raises:
            InputError: a run is chosen, but the model is not a study, or has no such run.
        """
        from shiftscope.runtime.sizes import read_size

        own = asdict(self)
        paths = {name: None if own[name] is None else str(own[name]) for name in ("weights", "data_dir")}
        count = images if self.images is None else self.images
        given = {"images": count, "device": self.job_device()}
        size = None if self.size is None else read_size(self.size)
        return {name: own[name] for name in SUBJECT} | {"size": size} | paths | self._chosen(model) | given

    def _chosen(self, model: str) -> dict[str, str]:
        """Return the model, which is a study's run if one is chosen, and what to call it."""
        if self.run is None:
            return {"model": model}
        from shiftscope.studies.folder import read_folder

        return {"model": str(read_folder(Path(model)).run(self.run)), "title": f"{model}, run {self.run}"}

    def job_device(self) -> str:
        """Return the device that computes."""
        return self.torch_device()

    def arguments(self, model: str, *, without: Collection[str] = (), trust: bool | None = None) -> str:
        """Return the model and the given options as text, for a command that measures the same images.

        Args:
            model: as the command names it.
            without: options that the model does not need.
            trust: whether its file needs trust; None for the option as it is given.
        """
        given = self if trust is None else replace(self, trust=trust)
        words = [model]
        for each in fields(ModelOptions):
            value, option = getattr(given, each.name), f"--{each.name.replace('_', '-')}"
            if each.name in (*NOT_REPEATED, *without) or value == each.default:
                continue
            if value is True:
                words.append(option)
            else:
                words += [option, *(map(repr, value) if isinstance(value, tuple) else [str(value)])]
        return " ".join(map(quote, words))


#: Options that describe what is measured, and those that a suggested command leaves out.
SUBJECT = ("size", "mean", "std", "output", "embedding", "trust", "data", "max_shift", "seed")
NOT_REPEATED = ("as_json", "wide")
#: The options that describe a model, which a file of `shiftscope fix` knows by itself.
OF_THE_MODEL = ("run", "weights", "size", "mean", "std", "output")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AuditOptions(ModelOptions, ExecutorOptions):
    """Options of `audit`, which may run in parts.

    Parameters
    ----------
    images
        Number of images to measure, picked with a fixed seed. By default 256.
    mode
        What comes in at the border that a shift uncovers: the background (`zero`), the photo around the model's input (`crop`),
        or the content that left on the other side (`circular`). By default protocols of every border are measured, else those of
        this one only.
    max_shift
        Largest shift, in pixels. By default each protocol's own.
    """

    images: Count = None
    mode: OneBorder = None
    max_shift: Count = None

    def job_device(self) -> str:
        """Return the device that computes; a share of a GPU asks for one."""
        return ExecutorOptions.job_device(self)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CertifyOptions(ModelOptions):
    """Options of `certify`, which tries every shift: there is no seed to choose.

    Parameters
    ----------
    images
        Number of images to measure, picked with a fixed seed. By default 256.
    """

    images: Count = None
    seed: Annotated[int, Parameter(parse=False)] = 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FixOptions(ModelOptions, ExecutorOptions):
    """Options of `fix`, whose trainings may run elsewhere; it measures on this machine.

    Parameters
    ----------
    mode
        What comes in at the border that a shift uncovers: the background (`zero`), the photo around the model's input (`crop`),
        or the content that left on the other side (`circular`). By default `circular`, and beside it `crop` for photos that are
        larger than the input, else `zero`.
    """

    mode: OneBorder = None

    def training_device(self) -> str:
        """Return the device that trains; a share of a GPU asks for one."""
        return ExecutorOptions.job_device(self)

    def distributes(self) -> bool:
        """Return whether an option of executors is given."""
        return any(getattr(self, name) for name in ("address", "gpus", "submit")) or self.executor != "processes"
