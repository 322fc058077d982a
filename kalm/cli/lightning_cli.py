"""The verbs ``fit``, ``validate``, ``test`` and ``predict``: Lightning's own command line with a few things tied.

What is added to LightningCLI: the run folder, checkpoints and loggers in it, the model's sizes taken from the data
module, and errors that say what to do. ``${...}`` in YAML is resolved after all files and options are merged
(jsonargparse's "omegaconf+" mode), so that ``--root`` and ``--seed_everything`` on the command line reach every path
that mentions them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

import kalm
from kalm.callbacks.every_run import RandomState, UpdateAxis, UpdateCheckpoint, UpdateProgressBar, point_to
from kalm.callbacks.made_up_validation import MadeUpValidation, is_validation_missing, note_validation
from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.callbacks.success_rate import SuccessRate
from kalm.callbacks.termination import Termination
from kalm.cli.usage import usage_error
from kalm.cli.validation_interval import interval_in_batches
from kalm.core.errors import CheckpointError, KalmError
from kalm.core.provenance import git_commit
from kalm.core.specs import Spec
from kalm.core.termination import Terminated
from kalm.rl.training.side_by_side import checkpoint_of
from kalm.runs.checkpoint_io import VerifiedCheckpointIO, read_sidecar, verify_checkpoint
from kalm.runs.evaluated import EvaluatedPolicy
from kalm.runs.folder import LAST, METRICS_FILE, clear_run, find_checkpoint, run_folder
from kalm.runs.loggers import MetricsFileLogger, RunTensorBoardLogger

_NOISE = (
    ".*does not have many workers.*",  # batches are gathered from memory maps; a worker process would only copy them
    ".*`IterableDataset` has `__len__` defined.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated.*",  # inside Lightning, which calls torch
)
_CHATTERERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector")
_CHATTER = (
    "💡",  # Lightning recommends products
    "`weights_only` was not set",  # said at every checkpoint; what it is about is what is written, which is everything
)


def run_verb(verb: str, arguments: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` with what follows it on the command line.

    Raises:
        KalmError: For everything a user can mend; its ``exit_code`` says of which kind it is.
        SystemExit: With code 143 if a SIGTERM ended it before its time.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in _CHATTERERS:
        logging.getLogger(name).addFilter(_is_no_chatter)
    # A data class is otherwise taken apart into arguments of its own, which a link cannot set as a whole.
    set_parsing_settings(subclasses_enabled=[Spec], omegaconf_absolute_to_relative_paths=True)
    told = Termination()
    try:
        KalmCLI([verb, *arguments], told)
    except SIGTERMException as error:
        # It is a SystemExit without a code, which means success: a study would take half a training for a whole one.
        raise Terminated from error
    except RuntimeError as error:
        if told.is_told:  # another device has ended, and this one was waiting for it
            raise Terminated from error
        raise


class NumberedConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder; a later start gets a number and overwrites nothing."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml, or config-2.yaml and so on beside it."""
        save_numbered(self.parser, self.config, Path(trainer.default_root_dir))


def save_numbered(parser: LightningArgumentParser, config: Any, folder: Path) -> None:
    """Write config.yaml, or config-2.yaml and so on beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / "config.yaml", 1
    while path.exists():
        number += 1
        path = folder / f"config-{number}.yaml"
    parser.save(config, path, skip_unset=False)


class KalmCLI(LightningCLI):
    """LightningCLI for kalm's modules, data modules and run folders."""

    def __init__(self, args: list[str], termination: Termination) -> None:
        """Parse ``args``, which start with the verb, build everything and run the verb until told to end."""
        self._verb, self._termination = args[0], termination
        parser_kwargs: dict[str, Any] = {
            "parser_mode": "omegaconf+",
            "exit_on_error": False,
            "allow_abbrev": False,
            "dump_header": [
                f"python -m kalm {self._verb} --config this_file",
                f"kalm {kalm.__version__}, commit {git_commit(Path(kalm.__file__).parent)}",
            ],
        }
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=NumberedConfig,
            save_config_kwargs={"save_to_log_dir": False},  # it knows one name for the file only
            seed_everything_default=0,
            trainer_defaults={"num_sanity_val_steps": 0},  # a validation here takes a simulator, or imagination
            parser_kwargs={**parser_kwargs, "prog": "python -m kalm", self._verb: parser_kwargs},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one verb that was given, without ``weights_only``: loading is always restricted.

        Parsers for the other verbs would not be used, and take half a second each to build.
        """
        return {self._verb: LightningCLI.subcommands()[self._verb] | {"weights_only"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning adds; and let ``limit_val_batches: 1`` mean one batch, whatever was imported before.

        Python caches ``Optional[Union[int, float]]`` together with the same types in another order, and the parser
        tries types in their order. After a package that writes float first, 1 would be read as 1.0: all batches.
        """
        super().add_core_arguments_to_parser(parser)
        for action in parser._actions:
            types = get_args(getattr(action, "_typehint", None))
            if int in types and float in types and types.index(float) < types.index(int):
                action._typehint = reduce(or_, sorted(types, key=lambda kind: kind is not int))  # type: ignore[attr-defined]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, checkpointing and the links between objects that must agree."""
        parser.add_argument("--root", type=str, default="checkpoints", help="Folder below which all runs write.")
        place = "<domain>/<stage>/<name>, to be given; the run writes to <root>/<experiment>/seed=<seed_everything>/."
        parser.add_argument("--experiment", type=str, default="", help=place)
        afresh = "fit: start afresh in a folder that holds a run already, deleting that run's files."
        parser.add_argument("--overwrite", type=bool, default=False, help=afresh)
        parser.add_lightning_class_args(UpdateCheckpoint, "checkpoint")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.spec", "model.init_args.spec", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Evaluate and predict from the last checkpoint unless told otherwise: random weights are never meant."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults(ckpt_path="last")
        if subcommand == "predict":
            parser.set_defaults(return_predictions=False)  # a callback writes them as they come; nobody gathers them
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; every mistake becomes an error that names the key and the nearest valid one."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, OmegaConfBaseException, RecursionError) as error:
            raise usage_error(error, self._subcommand_parsers[self._verb]) from error

    def _parse_ckpt_path(self) -> None:
        """Settle the run folder, and find and verify the checkpoint, before anything is built.

        Lightning's version of this method unpickles the file unverified and puts the hyper-parameters found in it
        over the user's YAML.
        """
        verb = self.config["subcommand"]
        config = self.config[verb]
        if config["trainer"]["default_root_dir"] is not None:
            raise KalmError(
                f"trainer.default_root_dir is {config['trainer']['default_root_dir']!r}, but a run writes to "
                "<root>/<experiment>/seed=<seed_everything>/; set root and experiment instead"
            )
        place, seed = (config["root"], config["experiment"]), config["seed_everything"]
        num_seeds = config.get("model.init_args.num_seeds", 1)
        self.folder = run_folder(*place, seed, num_seeds)
        # Policies that are trained side by side get a folder each in the end.
        self.seed_folders = [run_folder(*place, seed + number) for number in range(num_seeds if num_seeds > 1 else 0)]
        self.resumed_update: int | None = None
        if config["ckpt_path"]:
            path = find_checkpoint(str(config["ckpt_path"]), self.folder)
            verify_checkpoint(path)
            config["ckpt_path"] = str(path)
            if verb == "fit":
                known = read_sidecar(path) or VerifiedCheckpointIO().load_checkpoint(path)
                self.resumed_update = int(known.get("update", known.get("global_step", 0)))
        elif verb == "fit" and os.path.lexists(self.folder / LAST) and not config["overwrite"]:
            raise CheckpointError(
                f"{self.folder} already holds a run ({LAST}). To continue it add --ckpt_path last; to keep it choose "
                "another --experiment or --seed_everything; to delete it and start afresh add --overwrite true"
            )
        elif verb == "fit" and not config["overwrite"]:
            occupied = [str(folder) for folder in self.seed_folders if (folder / LAST).exists()]
            if occupied:
                raise CheckpointError(
                    f"{', '.join(occupied)} already {'hold runs' if len(occupied) > 1 else 'holds a run'} ({LAST}), "
                    "which this run would replace when it ends. To keep them choose another --experiment or "
                    "--seed_everything; to delete them and start afresh add --overwrite true"
                )

    def before_fit(self) -> None:
        """Clear away an earlier run, now that everything was built and training can start."""
        if self.resumed_update is None:
            for folder in (self.folder, *self.seed_folders):
                rank_zero_only(clear_run)(folder)

    def after_fit(self) -> None:
        """Make up a last validation that an earlier start was killed in; then leave a run for each of several seeds."""
        if is_validation_missing(self.trainer):
            update = self.trainer.global_step
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            rank_zero_only(note_validation)(self.trainer, update)
        self._leave_runs_of_seeds()

    @rank_zero_only
    def _leave_runs_of_seeds(self) -> None:
        """Leave for each of several seeds, trained side by side, the run that it would have been alone."""
        if not self.seed_folders or not (self.folder / LAST).exists():
            return
        verb, checkpoint_io, source = self.config["subcommand"], VerifiedCheckpointIO(), (self.folder / LAST).resolve()
        together, stacked = checkpoint_io.load_checkpoint(source), dict(self.model.named_parameters()).keys()
        of_data = type(self.datamodule).__qualname__  # where Lightning keeps what decides the data
        for number, folder in enumerate(self.seed_folders):
            config, own = self.config[verb].clone(), checkpoint_of(together, stacked, number)
            config["seed_everything"] += number
            config["model.init_args.num_seeds"], config["ckpt_path"] = 1, None
            if UpdateCheckpoint().state_key in own["callbacks"]:
                own["callbacks"] = {**own["callbacks"], UpdateCheckpoint().state_key: {"saved": [source.name]}}
            own[of_data] = {**own[of_data], "seed": config["seed_everything"]}
            save_numbered(self._parser(verb), config, folder)
            checkpoint_io.save_checkpoint(own, folder / source.name)
            point_to(folder / LAST, source.name)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; by convention a ValueError of a constructor is about what the user typed."""
        try:
            super().instantiate_classes()
        except KalmError:
            raise
        except ValueError as error:
            raise KalmError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the Trainer our checkpoint plugin, loggers and the callbacks that every run has."""
        given = self._get(self.config_init, "trainer")
        own = {
            "default_root_dir": str(self.folder),
            "plugins": [*_as_list(given.get("plugins")), VerifiedCheckpointIO()],
            "logger": self._loggers() if given.get("logger") in (None, True) else given["logger"],
        }
        if self._verb == "fit" and is_overridden("val_dataloader", self.datamodule):
            per_batch = getattr(self.datamodule, "updates_per_step", 1)
            own["val_check_interval"] = interval_in_batches(given, per_batch)
        trainer = super().instantiate_trainer(**own, **kwargs)
        require_kept(self._verb, self.model, trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, UpdateCheckpoint)]
        given = _as_list(config.get("callbacks"))
        added: list[Callback] = [
            self._termination,
            MadeUpValidation(),  # before random numbers are chosen, of which it may draw some
            RandomState(self._get(self.config, "seed_everything")),
            UpdateAxis(),
        ]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            added.append(UpdateProgressBar())
        return super()._instantiate_trainer({**config, "callbacks": [*added, *given]}, callbacks)

    def _loggers(self) -> list[Any]:
        verb = self.config["subcommand"]
        # Only fit owns metrics.csv: evaluating a run must not touch its training curves.
        name = METRICS_FILE if verb == "fit" else f"metrics-{verb}.csv"
        return [
            RunTensorBoardLogger(str(self.folder), self.resumed_update),
            MetricsFileLogger(self.folder / name, self.resumed_update),
        ]


def require_kept(verb: str, model: LightningModule, callbacks: Sequence[Callback]) -> None:
    """Refuse to compute what nobody would keep: a list of callbacks in a later file replaces that of an earlier one.

    Raises:
        KalmError: It names the callback that is missing, and those that are there.
    """
    needed: type[Callback] | None = None
    if verb == "predict":
        needed = RolloutWriter
    elif verb in ("validate", "test") and isinstance(model, EvaluatedPolicy):
        needed = SuccessRate
    if needed is not None and not any(isinstance(callback, needed) for callback in callbacks):
        found = ", ".join(type(callback).__name__ for callback in callbacks)
        name = f"{needed.__module__}.{needed.__name__}"
        raise KalmError(
            f"{verb} would compute and keep nothing: trainer.callbacks lacks {name}. There are {found}. A list "
            f"replaces that of an earlier --config; add to it with trainer.callbacks+: {name}"
        )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_no_chatter(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CHATTER)
