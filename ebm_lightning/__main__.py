"""``ebm-lightning COMMAND``, or ``python -m ebm_lightning COMMAND``."""

import importlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ebm_lightning._lazy import optional_packages
from ebm_lightning.models import models_table

TRAINING = ("fit", "validate", "test", "predict")
COMMANDS = {
    "fit": "train a model; --config takes a file or a preset",
    "validate": "its metrics on validation data",
    "test": "its metrics on test data",
    "predict": "its predictions",
    "evaluate": "everything that can be measured on a model, as one page",
    "sample": "new samples",
    "log-z": "the partition function, with its error",
    "models": "list the trained models that come with the package",
    "presets": "list the presets",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Arguments:
        arguments: The command and its options; by default those of the command line.
    """
    command, *options = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    with ends_with_its_reader():
        if command in ("-h", "--help"):
            print(usage())
        elif command == "models":
            print(models_table())
        elif command == "presets":
            print(presets_table())
        elif command in COMMANDS:
            with optional_packages(f"ebm-lightning {command}"):
                run(command, None if arguments is None else options)
        else:
            sys.exit(f"'ebm-lightning {command}' is not a command.\n\n{usage()}")


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """End the process without a traceback if nothing reads its output any more, as in ``ebm-lightning presets | head``.

    Another pipe that breaks, such as one to a process that loads data, is still an error.
    """
    try:
        try:
            yield
        except SystemExit:  # how --help ends, perhaps with text in the buffer
            print(end="", flush=True)
            raise
        print(end="", flush=True)
    except BrokenPipeError:
        closed = _outputs_without_reader()
        if not closed:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in closed:
            os.dup2(nowhere, output)  # or Python would write the rest of its buffer at exit, and fail again
        sys.exit(1)


def _outputs_without_reader() -> list[int]:
    """The file descriptors of standard output and error, if they are pipes whose other end is closed."""
    if not hasattr(select, "poll"):  # on Windows
        return []
    outputs = select.poll()
    for output in (1, 2):
        outputs.register(output, 0)
    return [output for output, event in outputs.poll(0) if event & (select.POLLERR | select.POLLHUP)]


def run(command: str, options: Sequence[str] | None) -> None:
    """Run a command that needs the extra ``recipes``, with the options of the command line by default."""
    if command in TRAINING:
        train = importlib.import_module("ebm_lightning.commands.train")
        train.main(None if options is None else [command, *options])
        return
    from jsonargparse import auto_cli

    module = importlib.import_module(f"ebm_lightning.commands.{command.replace('-', '_')}")
    auto_cli(
        module.main,
        args=sys.argv[2:] if options is None else list(options),
        as_positional=False,
        prog=f"ebm-lightning {command}",
        usage="%(prog)s [options]",
    )


def usage() -> str:
    """The commands, with a line on each."""
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: ebm-lightning COMMAND [options]", "", *lines, "", "COMMAND --help lists its options."])


def presets_table() -> str:
    """The presets, with the first sentence of each."""
    from ebm_lightning.presets import FOLDER, preset_names

    return "\n".join(f"{n:26}{(FOLDER / f'{n}.yaml').read_text().splitlines()[0].lstrip('# ')}" for n in preset_names())


if __name__ == "__main__":
    main()
