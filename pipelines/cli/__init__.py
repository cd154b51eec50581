"""The commands that a person types."""


def main() -> None:
    """Run the command `prong`, whose installed script names this function."""
    from pipelines.cli import app

    app.main()
