"""report.md: what the run was, what came out and what to type next, put together from the run folder."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medtrain.callbacks.forecast import read_forecast
from medtrain.run.atomic import atomic_write
from medtrain.run.folder import Status, read_status
from medtrain.run.history import evaluations, read_metrics

_PARTS = ("task", "data", "model", "loss", "augment", "optimizer", "scheduler", "inference")
_LIMITS = {"max_steps": "N", "max_epochs": "N", "max_time": "TIME"}  # with what stands for a larger one
_NUM_WORST = 5
_NUM_NAMES = 8  # of tensors; initial_weights.json has all
_WITH_INTERVAL = ("dice", "nsd", "hd95_mm")  # of segmentations; intervals.csv has all


def write_report(run_dir: Path) -> Path:
    """Write report.md; what is not in the folder is left out.

    Args:
        run_dir: The run folder.

    Returns:
        The file.
    """
    status = read_status(run_dir)
    sections = [
        _summary(run_dir, status),
        _best(run_dir, status),
        _final_evaluation(run_dir),
        *_other_evaluations(run_dir),
        _worst_cases(run_dir),
        _pictures(run_dir),
        _adapter(run_dir),
        _components(run_dir),
        _plan(run_dir),
        _data(run_dir),
        _beginning(run_dir),
        _origin(run_dir),
        _next_commands(run_dir, status),
    ]
    path = run_dir / "report.md"
    atomic_write(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def _summary(run_dir: Path, status: Status) -> str:
    lines = [f"# {run_dir.parent.name} / {run_dir.name}", ""]
    ended = f", {status.message}" if status.message else ""
    lines.append(f"**{status.status}** after {status.step} steps{ended}.")
    if status.best is not None:
        best = status.best
        lines.append(f"Best {best['metric']}: **{best['value']:.4f}** at step {best['step']}.")
    forecast = read_forecast(run_dir)
    if forecast is not None and status.status != "done":
        lines.append(f"Forecast at step {forecast.step}: {forecast.describe()}.")
    if status.started and status.updated:
        started = datetime.datetime.fromisoformat(status.started)
        lines.append(f"Started {started:%Y-%m-%d %H:%M}, last change {_between(status.started, status.updated)} later.")
    return "\n".join(lines)


def _best(run_dir: Path, status: Status) -> str:
    if status.best is None:
        return ""
    rows = evaluations(read_metrics(run_dir), status.best["metric"])
    chosen = next((row for row in rows if row["step"] == status.best["step"]), None)
    if chosen is None:
        return ""
    table = []
    monitor = status.best["metric"]
    printed = _read_json(run_dir / "evaluation" / "summary.json").get("printed")
    keys = [key for key in chosen if key not in ("step", "epoch")]
    keys = [key for key in keys if printed is None or key.removeprefix("val/") in printed]
    for key in sorted(keys, key=lambda key: not f"{key}/".startswith(f"{monitor}/")):
        values = [row[key] for row in rows if key in row and not math.isnan(row[key])]
        span = f"{min(values):.4f} .. {max(values):.4f}" if values else "-"
        table.append((key, _number(chosen[key]), span, _number(rows[-1].get(key, math.nan))))
    heading = f"## Best evaluation during training (step {status.best['step']}, {len(rows)} evaluations)"
    return f"{heading}\n\n" + _table(("Metric", "Best model", "Span", "Last"), table)


def _other_evaluations(run_dir: Path) -> list[str]:
    """The newest evaluation of the part that training never saw."""
    folders = sorted((run_dir / "evaluation").glob("test_step_????????"))
    return [_final_evaluation(run_dir, f"evaluation/{path.name}", title="Test part") for path in folders[-1:]]


def _final_evaluation(run_dir: Path, folder: str = "evaluation", *, title: str = "Final evaluation") -> str:
    summary = _read_json(run_dir / folder / "summary.json")
    classes = summary.get("classes", {})
    metrics = list(dict.fromkeys(metric for values in classes.values() for metric in values))
    rows = []
    for name, values in classes.items():
        cells = (_statistic(values.get(metric, {})) for metric in metrics)
        rows.append((name, *cells))
    cases = f"{summary.get('num_cases', '?')} cases"
    where = f" of {summary['checkpoint']}" if "checkpoint" in summary else ""
    if not rows:
        return _whole_split(summary, folder, f"## {title}{where} on {cases}")
    means = summary.get("mean", {})
    rows.append(("**mean**", *(f"**{_number(means.get(metric))}**" for metric in metrics)))
    text = f"## {title}{where} on {cases}, each whole and on its own grid (mean +- standard deviation)"
    every = f"Every case: `{folder}/cases.csv`."
    return "\n\n".join(filter(None, [text, _table(("Class", *metrics), rows), _class_intervals(summary), every]))


def _class_intervals(summary: Mapping[str, Any]) -> str:
    """The main metrics of segmentations with their intervals."""
    intervals, means = summary.get("intervals", {}), summary.get("mean", {})
    heads = [name for name in _WITH_INTERVAL if name in intervals]
    if not heads:
        return ""

    def cell(value: float | None, key: str) -> str:
        low, high = intervals[key]
        return f"{_number(value)} [{_number(low)}, {_number(high)}]"

    rows = [
        (name, *(cell(values.get(head, {}).get("mean"), f"{head}/{name}") for head in heads))
        for name, values in summary.get("classes", {}).items()
    ]
    rows.append(("**mean**", *(cell(means.get(head), head) for head in heads)))
    title = f"With {100 * summary.get('confidence', math.nan):.0f} % intervals (patients drawn again):"
    return f"{title}\n\n" + _table(("Class", *heads), rows)


def _whole_split(summary: Mapping[str, Any], folder: str, heading: str) -> str:
    """Metrics of a whole split with their intervals, and what was decided on the validation part."""
    metrics, intervals = summary.get("metrics", {}), summary.get("intervals", {})
    if not metrics:
        return ""
    rows = []
    printed = summary.get("printed") or metrics
    for name, value in ((name, value) for name, value in metrics.items() if name in printed):
        low, high = intervals.get(name, (math.nan, math.nan))
        rows.append((name, _number(value), f"{_number(low)} .. {_number(high)}" if name in intervals else "-"))
    confidence = summary.get("confidence")
    between = f"{100 * confidence:.0f} % interval (patients drawn again)" if confidence else "Interval"
    lines = [f"{heading}, {summary.get('num_patients', '?')} patients", _table(("Metric", "Value", between), rows)]
    decided = [f"{name} = {_number(value)}" for name, value in summary.get("decision", {}).items()]
    if decided:
        lines.append(f"Chosen on the validation part: {', '.join(decided)}.")
    return "\n\n".join([*lines, f"Every case: `{folder}/cases.csv`."])


def _worst_cases(run_dir: Path) -> str:
    worst = _read_json(run_dir / "evaluation" / "summary.json").get("worst", [])
    if not worst:
        return ""
    score = next((key for key in worst[0] if key != "case_id"), "score")
    rows = [(entry["case_id"], _number(entry[score])) for entry in worst[:_NUM_WORST]]
    return "## Worst cases\n\n" + _table(("Case", score.capitalize()), rows)


def _pictures(run_dir: Path) -> str:
    lines = []
    if (run_dir / "progress.png").exists():
        lines.append("![progress](progress.png)")
    curves = sorted((run_dir / "curves").glob("*.png"))
    if curves:
        lines.append("Curves: " + ", ".join(f"[{path.stem}](curves/{path.name})" for path in curves))
    previews = sorted((run_dir / "previews").glob("step_????????.png"))
    if previews:
        lines += ["Worst of the best model:", f"![worst](previews/{previews[-1].name})"]
    final = [path for path in sorted((run_dir / "evaluation").glob("*.png")) if path.stem != "worst"]
    lines += [f"![{path.stem}](evaluation/{path.name})" for path in final]
    return "## Pictures\n\n" + "\n\n".join(lines) if lines else ""


def _adapter(run_dir: Path) -> str:
    files = sorted((run_dir / "adapter").glob("*"))
    if not files:
        return ""
    model = _read_config(run_dir).get("model", {})
    rows = [(path.name, f"{path.stat().st_size / 1e6:.2f} MB") for path in files]
    return (
        "## Adapter (adapter/)\n\nOf the best weights, in the format of PEFT: "
        '`peft.PeftModel.from_pretrained(network, "adapter")` reads it for a network of timm, '
        f"`{model.get('arch', '?')}`, with the weights `{model.get('weights')}`. The head is beside it. The run's "
        "checkpoints need these weights too: `model.weights=PATH` says where they are.\n\n"
        + _table(("File", "Size"), rows)
    )


def _components(run_dir: Path) -> str:
    config = _read_config(run_dir)
    rows = []
    for part in _PARTS:
        values = config.get(part)
        if isinstance(values, Mapping) and "name" in values:
            shown = [f"{key}={_text(value)}" for key, value in values.items() if _is_shown(key, value)]
            rows.append((part, str(values["name"]), ", ".join(shown)))
    if not rows:
        return ""
    rows.append(("seed", str(config.get("seed", "-")), ""))
    return "## What was trained (config.yaml)\n\n" + _table(("Part", "Component", "Settings"), rows)


def _plan(run_dir: Path) -> str:
    plan = _read_json(run_dir / "plan.json")
    reasons = plan.get("reasons", {})
    config = _read_config(run_dir)
    rows = [(key, _text(_planned(plan, config, key)), reason) for key, reason in reasons.items()]
    if not rows:
        return ""
    return "## What followed from the data (plan.json)\n\n" + _table(("Key", "Value", "Reason"), rows)


def _planned(plan: Mapping[str, Any], config: Mapping[str, Any], key: str) -> Any:
    """A derived value: the configuration holds it but where its word stands for numbers."""
    group, _, name = key.partition(".")
    if name == "normalization" and "mean" in plan:
        return {"mean": plan["mean"], "std": plan["std"]}
    section = config.get(group)
    typed = section.get(name) if isinstance(section, Mapping) else None
    return plan.get(name, "") if typed is None else typed


def _data(run_dir: Path) -> str:
    data = {key: value for key, value in _read_json(run_dir / "data.json").items() if not isinstance(value, dict)}
    return "## Data\n\n" + _table(("", ""), [(key, _text(value)) for key, value in data.items()]) if data else ""


def _beginning(run_dir: Path) -> str:
    """The weights that a fine-tuned run began with."""
    facts = _read_json(run_dir / "initial_weights.json")
    if not facts:
        return ""
    rows = [(key, _text(value)) for key, value in facts.items() if not isinstance(value, list | dict)]
    for how in dict.fromkeys(facts.get("adapted", {}).values()):
        rows.append(("adapted", f"{list(facts['adapted'].values()).count(how)} {how}"))
    rows += [(key, _some(facts[key])) for key in ("missing", "unexpected") if facts.get(key)]
    for name, shapes in facts.get("mismatched", {}).items():
        rows.append((f"{name} begins anew", f"{shapes['there']} there, {shapes['here']} here"))
    return "## Began with (initial_weights.json)\n\n" + _table(("", ""), rows)


def _origin(run_dir: Path) -> str:
    env = _read_json(run_dir / "env.json")
    if not env:
        return ""
    cpu, git, packages = env.get("cpu", {}), env.get("git"), env.get("packages", {})
    gpus = ", ".join(gpu["model"] for gpu in env.get("gpu", [])) or "none"
    rows = [
        ("Machine", f"{env.get('host')}: {cpu.get('cores')} cores of {cpu.get('model')}, GPU {gpus}"),
        ("Software", f"medtrain {env.get('medtrain')}, torch {packages.get('torch')}, Python {env.get('python')}"),
    ]
    if git:
        rows.append(("Code", f"{git['commit']}{' with local changes' if git['dirty'] else ''}"))
    commands = run_dir / "command.txt"
    text = "## Where it ran (env.json)\n\n" + _table(("", ""), rows)
    if commands.exists():
        text += f"\n\n```sh\n{commands.read_text(encoding='utf-8').strip()}\n```"
    return text


def _next_commands(run_dir: Path, status: Status) -> str:
    relative = os.path.relpath(run_dir)
    run = str(run_dir) if relative.startswith("..") else relative
    of_images = "targets" in _read_json(run_dir / "plan.json")
    test = " --part test" if of_images and _read_json(run_dir / "splits.json").get("test") else ""
    return f"""## What to do with it

```sh
medtrain resume   {run}{_how_to_resume(run_dir, status)}
medtrain evaluate {run}{test}
medtrain predict  {run} {"IN OUT.csv    # IN: an image, a folder or a table" if of_images else "SCANS OUT"}
medtrain export   {run} --format onnx
tensorboard --logdir {run}
```"""


def _how_to_resume(run_dir: Path, status: Status) -> str:
    """A run that is not done goes on as it is; one that is done needs more of what bounds it."""
    if status.status != "done":
        return "    # go on"
    trainer = _read_config(run_dir).get("trainer", {})
    limits = {key: trainer[key] for key in _LIMITS if trainer.get(key) is not None}
    if not limits:
        return " trainer.max_steps=N    # train longer"
    overrides = "".join(f" trainer.{key}={_LIMITS[key]}" for key in limits)
    return f"{overrides}    # train longer than {' and '.join(map(str, limits.values()))}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(header), "|" + "---|" * len(header)]
    return "\n".join([*lines, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        return {"damaged": f"{path.name} cannot be read: {error}"}
    return values if isinstance(values, dict) else {}


def _read_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config if isinstance(config, dict) else {}


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _statistic(values: Mapping[str, Any]) -> str:
    mean, spread = values.get("mean"), values.get("std")
    return _number(mean) if mean is None or spread is None else f"{mean:.4f} +- {spread:.4f}"


def _is_shown(key: str, value: Any) -> bool:
    return key != "name" and value not in (None, "", [], {})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _some(names: Sequence[str]) -> str:
    """The first of many names, each whole."""
    more = f" and {len(names) - _NUM_NAMES} more" if len(names) > _NUM_NAMES else ""
    return ", ".join(names[:_NUM_NAMES]) + more


def _between(start: str, end: str) -> str:
    seconds = (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(start)).total_seconds()
    return str(datetime.timedelta(seconds=round(seconds)))
