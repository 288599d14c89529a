"""Configs of published methods and of this library's own models, for ``ebm-lightning fit --config NAME``."""

from pathlib import Path

FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """The names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset_path(config: str) -> str:
    """The file that ``--config`` means: an existing file, or the preset of that name.

    Raises:
        ValueError: It is neither.
    """
    if Path(config).is_file():
        return config
    if config not in preset_names():
        raise ValueError(f"'--config' should be a file or a preset ({', '.join(preset_names())}), got {config!r}.")
    return str(FOLDER / f"{config}.yaml")
