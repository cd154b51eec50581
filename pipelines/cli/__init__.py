"""The commands of the command line."""


def main() -> None:
    """Run the command `prong`; the installed script calls this function."""
    from pipelines.cli import app
    from pipelines.core.text import print_anything

    print_anything()
    app.main()
