"""`medtrain plan`: what the data look like, what follows from them, why, and what training costs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports, Overrides
from medtrain.cli._run import handle_errors


def plan(
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Save the plan as an experiment, to edit and train with (.yaml)."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Make real training steps on random data, however long they take.")
    ] = False,
    gpu: Annotated[
        float | None,
        typer.Option("--gpu", metavar="GIB", help="Plan for a GPU with so much memory; none is needed here.", min=1.0),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the FILE of --out.")] = False,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Look at the data and print the plan that `medtrain train` would follow, each value with its reason and its key.

    Tells sizes, voxel sizes and intensities of the training part, the patch, batch and network that follow, the memory
    that training needs and this machine has, the time of a step, and the disk that the prepared cases take. Every
    value can be set by the key that is shown:

        medtrain plan data=msd data.root=DIR data.patch_size=[64,96,96]

    A saved plan is an experiment: edit it, and train with exactly its values. Overrides still come last.

        medtrain plan data=msd data.root=DIR --out plan.yaml
        medtrain train experiment=plan.yaml

    For a GPU that this machine does not have, say its memory; data.memory_gib says how much of it to use, which is
    nnU-Net's 8 GiB unless the model is one of its larger presets.

        medtrain plan data=msd data.root=DIR model=resenc_l --gpu 24 --out plan.yaml
    """
    with handle_errors(debug):
        from medtrain.config.compose import load_config
        from medtrain.config.render import experiment_yaml
        from medtrain.engine.cost import step_cost
        from medtrain.engine.derive import derive, with_plan
        from medtrain.engine.plan_report import plan_sections, plan_text, planned_notes
        from medtrain.errors import UsageError
        from medtrain.run.atomic import atomic_write

        if out is not None and out.suffix not in (".yaml", ".yml"):
            raise UsageError(f"--out {out}: a plan is saved as YAML", hint=f"--out {out.with_suffix('.yaml')}")
        if out is not None and out.exists() and not overwrite:
            raise UsageError(f"--out {out}: it exists, and may have been edited", hint="--overwrite, or another name")
        if gpu is not None and measure:
            raise UsageError("--measure makes steps on this machine, not on the GPU of --gpu", hint="leave one out")
        composed = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ())
        derivation = derive(composed.tree, progress=_report if sys.stderr.isatty() else None, gpu_gib=gpu)
        text = plan_text(plan_sections(derivation, step_cost(derivation, measure=measure)))
        typer.echo(text, nl=False)
        if out is not None:
            planned = with_plan(composed.tree, derivation)
            planned["data"]["store"] = composed.tree["data"]["store"]  # wherever it is trained
            head = f"{derivation.found.dataset_name}: a plan. Train with it: medtrain train experiment={out}\n\n{text}"
            composed = dataclasses.replace(composed, tree=planned)
            atomic_write(out, experiment_yaml(composed, comment=head, notes=planned_notes(derivation).get))
            typer.echo(f"saved; train with it: medtrain train experiment={out}", err=True)


def _report(done: int, total: int, case_id: str) -> None:
    typer.echo(f"\rreading case {done} of {total}", err=True, nl=done == total)
