"""The commands of the command line."""

import sys

NEEDED = (
    *("PIL", "mlflow", "model_signing", "numpy", "onnx", "onnxruntime", "pydantic", "OpenSSL"),
    *("requests", "rich", "ruamel", "sqlalchemy", "typer"),
    *("httptools", "multipart", "prometheus_client", "pythonjsonlogger", "uvicorn", "uvloop"),
    *("cyclonedx", "dvc", "dvc_s3", "fastapi", "jinja2", "matplotlib", "mlxtend", "onnxscript"),
    *("optuna", "pyarrow"),
    *("prefect", "psycopg2", "safetensors", "scipy"),
)
"""What the extras serve and pipeline install, as Python names it."""


def main() -> None:
    """Run the command `prong`; the installed script calls this function.

    The package alone is the method for one's own training loop: it has no command.
    """
    from pipelines.core.text import print_anything

    print_anything()
    try:
        from pipelines.cli import app

        app.main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDED:
            raise
        said = f"{missing} is not installed, and this command needs it"
        print(f"error: {said}: pip install 'prong[pipeline]'", file=sys.stderr)
        sys.exit(2)
