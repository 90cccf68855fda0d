"""What a checkpoint of the engine holds, and how it is taken back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from medtrain.engine.checkpoint import Checkpoint
from medtrain.run.seed import rng_state, set_rng_state

if TYPE_CHECKING:
    from medtrain.engine.loop import Engine


def state_dict(engine: Engine) -> dict[str, Any]:
    """Everything but the weights that makes the continuation identical: tensors and primitives."""
    return {
        "optimizer": engine.optimizer.state_dict(),
        "schedule": engine.schedule.state_dict(),
        "precision": engine.precision.state_dict(),
        "stages": engine.stages.state_dict(),
        "ema_updates": engine.ema.updates if engine.ema is not None else 0,
        "meter": engine.meter.state_dict(),
        "clock": engine.clock.state_dict(),
        "cadences": {name: cadence.state_dict() for name, cadence in vars(engine.cadences).items()},
        "best": engine.best,
        "pending_evaluation": engine.pending_evaluation,
        "history": json.dumps(engine.history),
        "callbacks": engine.callbacks.state_dict(),
        "rng": rng_state(),
    }


def load_state(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put an engine where the checkpoint was taken, loggers included."""
    checkpoint.load_into(engine.model, ema=False)
    state = checkpoint.state()
    engine.optimizer.load_state_dict(state["optimizer"])
    engine.schedule.load_state_dict(state["schedule"])
    engine.precision.load_state_dict(state["precision"])
    engine.stages.load_state_dict(state["stages"])
    if engine.ema is not None:
        engine.ema.load_state_dict(checkpoint.weights(ema=True), updates=state["ema_updates"])
    engine.meter.load_state_dict(state["meter"])
    engine.clock.load_state_dict(state["clock"])
    for name, value in state["cadences"].items():
        vars(engine.cadences)[name].load_state_dict(value)
    engine.best = state["best"]
    engine.pending_evaluation = state["pending_evaluation"]
    engine.history = json.loads(state["history"])
    engine.metrics = {key: value for key, value in engine.history[-1].items() if "/" in key} if engine.history else {}
    engine.callbacks.load_state_dict(state["callbacks"])
    set_rng_state(state["rng"])
    engine.step = checkpoint.step
    engine.loggers.resume(engine.step)
