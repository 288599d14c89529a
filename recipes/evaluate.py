"""Evaluate a checkpoint, and the plain classifier of the same network as its baseline.

``python recipes/evaluate.py --checkpoint model.ckpt --baseline baseline.ckpt --data MNIST --data.root DIR`` measures
both on the same test images, and writes metrics.json, report.html and the pictures to one folder, as ``ebm-lightning
evaluate`` does. In Python, call :func:`ebm_lightning.evaluate`.
"""

import sys

from ebm_lightning.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
