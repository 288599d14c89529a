"""The commands of ``ebm-lightning``, one file each."""
