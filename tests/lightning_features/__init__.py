"""Features of Lightning, each used on a small JEM as a user would. ``tests/test_lightning_matrix.py`` runs them all.

They are also the table of ``docs/lightning.md``; ``python -m tests.test_lightning_matrix`` prints it.
"""
