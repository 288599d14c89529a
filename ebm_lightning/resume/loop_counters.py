"""Corrects the loop counters of a checkpoint, so that Lightning resumes at the right place in the epoch.

Lightning 2.6 resumes a checkpoint that was written after the last batch of an epoch, or just before a validation,
without that validation, or it skips an epoch, counts one twice or repeats the order of the last one. It raises no
error, so the counters are corrected when the checkpoint is written.
"""

from typing import Any

import lightning as L

from ebm_lightning.resume.lightning_internals import in_epoch, validation_is_due

# Names in the checkpoint of Lightning's loops.
BATCHES = "epoch_loop.batch_progress"
VAL_BATCHES = "epoch_loop.val_loop.batch_progress"
EPOCHS = "epoch_progress"
EPOCH_LOOP = "epoch_loop.state_dict"
STEPPED = "_batches_that_stepped"


def correct_loop_counters(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Correct the counters of ``checkpoint``, which is about to be written, for the current place in the epoch."""
    if not in_epoch(trainer):
        return
    loops = checkpoint["loops"]["fit_loop"]
    batch_ends, epoch_ends = _is_ending(loops[BATCHES]), _is_ending(loops[EPOCHS])
    last_batch, counts_steps = loops[BATCHES]["is_last_batch"], trainer.max_steps != -1
    if last_batch:
        _finish_loaders(loops["state_dict"].get("combined_loader", []))
    if batch_ends and validation_is_due(trainer):
        _mark_validation_pending(loops)
    elif batch_ends and last_batch and not counts_steps:
        _move_to_epoch_end(loops, 1)
    elif epoch_ends and counts_steps:
        _move_to_epoch_end(loops, -1)


def _is_ending(progress: dict[str, Any]) -> bool:
    """Whether a batch or epoch has been processed but not yet completed."""
    return progress["current"]["completed"] < progress["current"]["processed"]


def _finish_loaders(states: Any) -> None:
    """Mark torchdata's loaders as finished, and move this library's samplers to the start of the next epoch.

    A loader notices that it is finished when asked for another batch, which Lightning never does.
    """
    if isinstance(states, dict):
        if "_iterator_finished" in states:
            states["_iterator_finished"] = True
        if {"yielded", "epoch", "num_replicas"} <= states.keys():
            states.update(yielded=0, epoch=states["epoch"] + 1)
    for state in states.values() if isinstance(states, dict) else states:
        if isinstance(state, dict | list):
            _finish_loaders(state)


def _mark_validation_pending(loops: dict[str, Any]) -> None:
    """Set the counters as within the first batch of the validation: Lightning then runs it from its start."""
    _add(loops[BATCHES], completed=1)
    validation = loops[VAL_BATCHES]
    validation["total"] = dict.fromkeys(validation["total"], validation["total"]["completed"])
    validation["current"] = dict.fromkeys(validation["current"], 0)
    _add(validation, ready=1, started=1)


def _move_to_epoch_end(loops: dict[str, Any], by: int) -> None:
    """Move the counters from the last batch to the epoch's end (1), or back (-1).

    From the last batch Lightning would resume with its sanity check of the validation data. From the epoch's end, if
    ``max_steps`` is set, it would count the epoch twice.
    """
    _add(loops[BATCHES], completed=by)
    loops[EPOCH_LOOP][STEPPED] += by
    _add(loops[EPOCHS], processed=by)


def _add(progress: dict[str, Any], **change: int) -> None:
    for counters in (progress["total"], progress["current"]):
        for name, by in change.items():
            counters[name] += by
