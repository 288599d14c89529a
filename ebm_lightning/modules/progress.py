"""Where in the epoch a checkpoint stands, said so that Lightning goes on from there and nowhere else.

A checkpoint of Lightning 2.6 that was written after the last batch of an epoch, or just before a validation, is resumed
without that validation, or with an epoch skipped, counted twice or begun in the old order. Nothing of it is an error to
Lightning, so the counters in the checkpoint are put right here.
"""

from typing import Any

import lightning as L


def settle_progress(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Rewrite the counters of ``checkpoint``, which is being written, for the place in the epoch where that happens."""
    if trainer.fit_loop._data_fetcher is None:  # no epoch is under way
        return
    loops = checkpoint["loops"]["fit_loop"]
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    batch_ends = batches["current"]["completed"] < batches["current"]["processed"]
    epoch_ends = epochs["current"]["completed"] < epochs["current"]["processed"]
    counts_steps = trainer.max_steps != -1
    if batches["is_last_batch"]:
        _end_loaders(loops["state_dict"].get("combined_loader", []))
    if batch_ends and _validation_is_due(trainer):
        _owe_validation(loops)
    elif batch_ends and batches["is_last_batch"] and not counts_steps:
        _end_epoch(loops)
    elif epoch_ends and counts_steps:
        _back_to_last_batch(loops)


def _validation_is_due(trainer: L.Trainer) -> bool:
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.enable_validation and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _end_loaders(states: Any) -> None:
    """Mark torchdata's loaders as finished: they learn it when asked for one batch more, which Lightning never does.

    A sampler of :mod:`ebm_lightning.data`, somewhere inside, goes on at the start of the next epoch.
    """
    if isinstance(states, dict):
        if "_iterator_finished" in states:
            states["_iterator_finished"] = True
        if {"yielded", "epoch", "num_replicas"} <= states.keys():
            states.update(yielded=0, epoch=states["epoch"] + 1)
    for state in states.values() if isinstance(states, dict) else states:
        if isinstance(state, dict | list):
            _end_loaders(state)


def _owe_validation(loops: dict[str, Any]) -> None:
    """As if killed within the first batch of the validation: Lightning then runs it from its start."""
    _add(loops["epoch_loop.batch_progress"], completed=1)
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["total"] = dict.fromkeys(validation["total"], validation["total"]["completed"])
    validation["current"] = dict.fromkeys(validation["current"], 0)
    _add(validation, ready=1, started=1)


def _end_epoch(loops: dict[str, Any]) -> None:
    """As if written at the epoch's end: from its last batch Lightning goes on with a look at the validation data."""
    _add(loops["epoch_loop.batch_progress"], completed=1)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    _add(loops["epoch_progress"], processed=1)


def _back_to_last_batch(loops: dict[str, Any]) -> None:
    """As if written after the epoch's last batch: given ``max_steps``, Lightning counts an epoch twice from its end."""
    _add(loops["epoch_loop.batch_progress"], completed=-1)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    _add(loops["epoch_progress"], processed=-1)


def _add(progress: dict[str, Any], **change: int) -> None:
    for counters in (progress["total"], progress["current"]):
        for name, by in change.items():
            counters[name] += by
