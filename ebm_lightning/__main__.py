"""``ebm-lightning COMMAND``, or ``python -m ebm_lightning COMMAND``."""

import importlib
import sys
from collections.abc import Sequence

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
