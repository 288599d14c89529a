"""Estimate log Z of a trained model: ``python recipes/estimate_log_z.py --checkpoint model.ckpt``.

``ebm-lightning log-z`` does the same. In Python, call ``model.estimate_log_z`` or :func:`ebm_lightning.ais`.
"""

import sys

from ebm_lightning.__main__ import main

if __name__ == "__main__":
    main(["log-z", *sys.argv[1:]])
