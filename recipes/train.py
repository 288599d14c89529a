"""Train any module on any data: ``python recipes/train.py fit --config jem_cifar10``, as ``ebm-lightning fit`` does.

``--config`` takes a file or a preset; :mod:`ebm_lightning.commands.train` describes the options.
"""

from ebm_lightning.commands.train import main

if __name__ == "__main__":
    main()
