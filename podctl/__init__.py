"""The laptop's side: decide, rent, reach, watch, give back."""


def version() -> str:
    """This podctl's version: the source tree's own where it runs from one, else the installed distribution's."""
    from pathlib import Path

    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if pyproject.is_file():
        import tomllib

        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "podctl":
            return str(project["version"])
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("podctl")
    except PackageNotFoundError:
        return "unknown"
