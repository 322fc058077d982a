"""The verbs that are not Lightning's: thin doors to the modules that do the work."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from kalm.cli.stage_process import run_stage
from kalm.cli.usage import usage_error
from kalm.core.errors import require
from kalm.envs.base import Domain
from kalm.judging.judge import Judge
from kalm.runs.folder import SOLVED_FILE, find_checkpoint, run_folder
from kalm.study import definition, run


def run_verb(verb: str, arguments: list[str]) -> int:
    """Run one of ``collect``, ``label``, ``solve``, ``run``, ``export``, ``report`` and ``doctor``; the exit code."""
    make_parser, act = VERBS[verb]
    parser = make_parser()
    try:
        config = parser.parse_args(arguments)
    except (ArgumentError, OmegaConfBaseException, RecursionError) as error:
        raise usage_error(error, parser) from error
    return act(config)


def _parser(verb: str, description: str, **options: Any) -> ArgumentParser:
    prog = f"python -m kalm {verb}"
    return ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False, **options)


def _say(text: str) -> None:
    Console().print(text, markup=False, soft_wrap=True)


def _collect_parser() -> ArgumentParser:
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = _parser(
        "collect",
        "Collect real rollouts with the domain's expert. A collection that was killed goes on.",
        parser_mode="omegaconf+",
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; may be given again.")
    parser.add_argument("--root", type=str, default="checkpoints", help="Folder below which all runs write.")
    place = "<domain>/<stage>/<name>; the store is written to <root>/<experiment>/seed=<seed>/."
    parser.add_argument("--experiment", type=str, default="", help=place)
    parser.add_argument("--domain", type=Domain, required=True, help="The world, by class_path.")
    parser.add_argument("--num_rollouts", type=int, default=10000, help="Rollouts to collect.")
    parser.add_argument("--seed", type=int, default=0, help="Equal seeds give equal files.")
    parser.add_argument("--show_progress", type=bool, default=True, help="Draw a progress bar.")
    return parser


def _collect(config: Namespace) -> int:
    folder = run_folder(config.root, config.experiment, config.seed)
    require(config.num_rollouts >= 1, "num_rollouts", config.num_rollouts, "at least 1")
    domain = _collect_parser().instantiate(config).domain
    from kalm.store.collect import collect_store, success_by_task

    store = collect_store(domain, folder, config.num_rollouts, config.seed, show_progress=config.show_progress)
    megabytes = sum(entry["bytes"] for entry in store.manifest["files"].values()) / 1e6
    _say(
        f"{folder}: {store.num_rollouts} rollouts, {len(store)} transitions, {megabytes:.1f} MB "
        f"({store.manifest['bytes_per_transition']} bytes a transition)"
    )
    rates = [f"{task} {good}/{count}" for task, (good, count) in success_by_task(domain, store).items()]
    _say(f"successful rollouts by task: {', '.join(rates) or 'none has a goal'}")
    return 0


def _label_parser() -> ArgumentParser:
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = _parser(
        "label",
        "Ask a judge which states of a store meet which goals, or which rollouts meet their own. A labelling that was "
        "killed goes on.",
        parser_mode="omegaconf+",
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; may be given again.")
    parser.add_argument("--root", type=str, default="checkpoints", help="Folder below which all runs write.")
    parser.add_argument("--store", type=str, required=True, help="Folder of the rollout store; labels lie in it.")
    parser.add_argument("--domain", type=Domain, required=True, help="The world, by class_path.")
    parser.add_argument("--judge", type=Judge, required=True, help="Who is asked, by class_path.")
    parser.add_argument(
        "--name", type=str, default="", help="Of the label, <store>/labels/<name>/; the judge's if none."
    )
    about = "states: which meet which training goals. rollouts: which meet their own; what is below says nothing then."
    parser.add_argument("--about", type=Literal["states", "rollouts"], default="states", help=about)
    most = "States asked about each goal at most, none of which are alike to it (paper: 5000); null asks about all."
    parser.add_argument("--max_states_per_goal", type=int | None, default=5000, help=most)
    goals = "Goals of the training split, drawn by the seed; null takes all (TEDUO, table 4: 266, 372, 534)."
    parser.add_argument("--max_goals", type=int | None, default=None, help=goals)
    kept = (
        "all: a row for each question. alike: also for states like those asked, max_states_per_goal rows at most. met: "
        "a row for each state that meets the goal, asked or like one that was."
    )
    parser.add_argument("--keep", type=Literal["all", "alike", "met"], default="all", help=kept)
    parser.add_argument("--seed", type=int, default=0, help="Decides which goals and states are asked about.")
    parser.add_argument("--show_progress", type=bool, default=True, help="Draw a progress bar.")
    return parser


def _label(config: Namespace) -> int:
    limit = config.max_states_per_goal
    require(limit is None or limit >= 1, "max_states_per_goal", limit, "at least 1, or null for all states")
    require(config.seed >= 0, "seed", config.seed, "at least 0")
    made = _label_parser().instantiate(config)
    if config.about == "rollouts":
        return _label_rollouts(made, config)
    from kalm.store.collect import open_domain_store
    from kalm.store.labelling import Keep, asked_by_task, distinct_goals, label_store, some_goals

    store, name, keep = open_domain_store(made.domain, config.store), config.name or made.judge.name, Keep(config.keep)
    goals = distinct_goals(made.domain)
    if config.max_goals is not None:
        goals = some_goals(goals, config.max_goals, config.seed)
    labels = label_store(made.domain, store, made.judge, name, limit, keep, config.seed, goals, config.show_progress)
    table = Table("task", "goals", "met at least once", "asked", "met", "abstained")
    for task, row in asked_by_task(made.domain, labels).items():
        table.add_row(task, *(f"{number:,}" for number in vars(row).values()))
    Console().print(table)
    _say(f"{store.path}/labels/{name}: {len(labels):,} rows of {len(labels.goals)} goals x {store.num_states:,} states")
    if labels.provenance.get("is_oracle"):
        _say("the judge is the domain's own rule: what is learned from these labels is an upper bound")
    elif keep is not Keep.met:
        from kalm.report.labeller_table import labeller_table

        Console().print(labeller_table(made.domain, store, labels))
        _say("the rule is only compared with, where none was asked")
    _say(f"next: {_AFTER_LABELS[keep.name]}")
    return 0


def _label_rollouts(made: Namespace, config: Namespace) -> int:
    from kalm.store.collect import open_domain_store
    from kalm.store.rollout_labelling import agreement_by_split, label_rollouts

    store, name = open_domain_store(made.domain, config.store), config.name or made.judge.name
    labels = label_rollouts(made.domain, store, made.judge, name, config.show_progress)
    table = Table("goals", "rollouts", "called met", "precision", "recall", "met, by the rule")
    for split, row in agreement_by_split(store, labels).items():
        shares = (row.share_met, row.precision, row.recall, row.share_true)
        table.add_row(split, f"{row.num_rollouts:,}", *(f"{share:.1%}" for share in shares))
    Console().print(table)
    _say(f"{store.path}/labels/{name}: {len(labels):,} rollouts; the rule is only compared with, where none was asked")
    chosen = f"--data.imagined.filter success --data.imagined.label {name} --data.imagined.top_return_fraction 1"
    _say(f"next: learn from what it calls met, {chosen}")
    return 0


_LEARN_A_PROXY = "learn a proxy of this judge with `python -m kalm fit --config conf/babyai/proxy_reward.yaml`"
_AFTER_LABELS = {
    "all": _LEARN_A_PROXY,
    "alike": _LEARN_A_PROXY,
    "met": "solve each goal that was met with `python -m kalm solve --config conf/babyai/solve.yaml`",
}


def _solve_parser() -> ArgumentParser:
    from kalm.rl.planning.hindsight import Hindsight  # brings numba, as the next one does
    from kalm.rl.planning.solvers import Solver

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = _parser(
        "solve",
        "Solve every goal that was met on the graph of what was recorded; write plans from many starts. A solving that "
        "was killed goes on.",
        parser_mode="omegaconf+",
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; may be given again.")
    parser.add_argument("--root", type=str, default="checkpoints", help="Folder below which all runs write.")
    place = "<domain>/<stage>/<name>; plans go to <root>/<experiment>/seed=<seed>/store, figures to solved.json there."
    parser.add_argument("--experiment", type=str, default="", help=place)
    parser.add_argument("--domain", type=Domain, required=True, help="The world, by class_path.")
    parser.add_argument("--store", type=str, required=True, help="Folder of the rollout store.")
    said = "Name of its label that says which states meet which goals; a state that has no row meets none."
    parser.add_argument("--label", type=str, required=True, help=said)
    by = {"class_path": "kalm.rl.planning.solvers.ShortestPath"}
    how = "How goals are solved, by class_path; kalm.rl.planning.hindsight.Hindsight keeps what was recorded."
    parser.add_argument("--solver", type=Solver | Hindsight, default=by, help=how)
    asked = "Who says whether goals are met in states that were never recorded (is_completed), by class_path."
    parser.add_argument("--judge", type=Judge | None, default=None, help=asked)
    parser.add_argument("--num_plans", type=int, default=8, help="Starts for each goal in each part of the store.")
    starts = "Share of the starts in configurations in which recorded rollouts begin; the others may be anywhere."
    parser.add_argument("--start_share", type=float, default=0.5, help=starts)
    parser.add_argument("--max_length", type=int, default=500, help="Steps; longer plans are left out.")
    completed = "Complete the graph by a local model of the dynamics, learned from the store."
    parser.add_argument("--is_completed", type=bool, default=False, help=completed)
    predicted = "Configurations predicted in each part at most, where the graph is completed."
    parser.add_argument("--max_configurations", type=int, default=3000, help=predicted)
    key = "Key in the provenance of rollouts: equal values, equal part. If absent, parts are what is connected."
    parser.add_argument("--part_key", type=str, default="grid", help=key)
    parser.add_argument("--seed", type=int, default=0, help="Decides starts, and actions among equally good ones.")
    threads = "Goals solved at the same time; all cores by default. The plans do not depend on it."
    parser.add_argument("--num_threads", type=int | None, default=None, help=threads)
    parser.add_argument("--show_progress", type=bool, default=True, help="Draw a progress bar.")
    return parser


def _solve(config: Namespace) -> int:
    folder = run_folder(config.root, config.experiment, config.seed)
    made = _solve_parser().instantiate(config)
    from kalm.rl.planning.solve import solve_store
    from kalm.rl.planning.solve_facts import PlanSettings, read_statistics
    from kalm.store.collect import open_domain_store

    settings = PlanSettings(**{field.name: config[field.name] for field in fields(PlanSettings)})
    store = open_domain_store(made.domain, config.store)
    plans = solve_store(
        made.domain, store, config.label, made.solver, folder, settings, made.judge, config.num_threads,
        config.show_progress,
    )  # fmt: skip
    said = read_statistics(folder)
    table = Table("task", "goals x parts", "met somewhere", "solvable from", "from starts", "plans", "mean length")
    for task, row in said["kinds"].items():
        counts = (f"{row[key]:,}" for key in ("num_pairs", "num_pairs_met"))
        shares = (f"{row[key]:.1%} of states" for key in ("solvable_share", "solvable_share_at_start"))
        table.add_row(task, *counts, *shares, f"{row['num_plans']:,}", f"{row['mean_length']:.1f}")
    Console().print(table)
    _say(f"{plans.path}: {plans.num_rollouts:,} plans, {len(plans):,} steps; figures in {folder / SOLVED_FILE}")
    if said["is_oracle"]:
        _say("the judge is the domain's own rule: what is learned from these plans is an upper bound")
    _say("next: let a student learn from the plans, `python -m kalm fit` with a file of conf/babyai")
    return 0


def _run_parser() -> ArgumentParser:
    description = f"{run.__doc__}\n{definition.__doc__}"
    parser = _parser("run", description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("study", type=str, help="Study file, for example conf/study/clevr_robot_demo.yaml.")
    parser.add_argument("--root", type=str | None, default=None, help="Folder to write below, in place of the file's.")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="Seeds, in place of the file's.")
    parser.add_argument("--redo", type=str, nargs="+", default=[], help="Names of stages to run even if they are done.")
    return parser


def _run(config: Namespace) -> int:
    study = definition.load_study(config.study, root=config.root, seeds=config.seeds)
    return run.run_study(study, Console(), run_stage, redo=config.redo)


def _export_parser() -> ArgumentParser:
    parser = _parser(
        "export",
        "Merge what grounding taught a pretrained model into its weights; write a Hugging Face folder.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of grounding, or its run folder.")
    parser.add_argument("--output", type=str, required=True, help="Folder to write; empty or absent.")
    moved = "Where the pretrained model lies now, if it has moved."
    parser.add_argument("--model", type=str | None, default=None, help=moved)
    kinds = Literal["bfloat16", "float16", "float32"]
    parser.add_argument("--dtype", type=kinds, default="bfloat16", help="Kind of number to save.")
    return parser


def _export(config: Namespace) -> int:
    from kalm.llm.grounding.export import export_model  # brings torch and transformers

    export_model(find_checkpoint(config.ckpt_path, Path()), Path(config.output), config.model, config.dtype)
    _say(f"{config.output}: a plain Hugging Face model")
    return 0


def _report_parser() -> ArgumentParser:
    parser = _parser(
        "report",
        "Tables and plots of whatever the stages have written: report.md, report.html, PNG files.",
    )
    parser.add_argument("folders", type=str, nargs="*", default=["checkpoints"], help="Roots or run folders.")
    parser.add_argument("--output", type=str, default="checkpoints/report", help="Folder to write to.")
    named = "Study file whose report section names the table's rows."
    parser.add_argument("--study", type=str | None, default=None, help=named)
    parser.add_argument("--num_last_evaluations", type=int, default=5, help="Evaluations to average (paper: 5).")
    return parser


def _report(config: Namespace) -> int:
    from kalm.report import write_report  # brings matplotlib

    root = config.folders[0] if len(config.folders) == 1 else None
    study = None if config.study is None else definition.load_study(config.study, root).definition
    write_report(config.folders, config.output, study, None, config.num_last_evaluations, Console())
    return 0


def _doctor_parser() -> ArgumentParser:
    parser = _parser("doctor", "Look at versions, GPU, rendering, disk and clashes with other packages; or at a world.")
    parser.add_argument("--root", type=str, default="checkpoints", help="Folder whose disk is looked at.")
    checked = "Check this world, by class_path, instead of the machine."
    parser.add_argument("--domain", type=Domain | None, default=None, help=checked)
    return parser


def _doctor(config: Namespace) -> int:
    from kalm.cli import doctor

    if config.domain is not None:
        return doctor.report_domain(_doctor_parser().instantiate(config).domain, Console())
    return doctor.report(doctor.examine(Path(config.root)), Console())


VERBS: dict[str, tuple[Callable[[], ArgumentParser], Callable[[Namespace], int]]] = {
    "collect": (_collect_parser, _collect),
    "label": (_label_parser, _label),
    "solve": (_solve_parser, _solve),
    "run": (_run_parser, _run),
    "export": (_export_parser, _export),
    "report": (_report_parser, _report),
    "doctor": (_doctor_parser, _doctor),
}
