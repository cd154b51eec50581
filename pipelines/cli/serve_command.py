"""The command `prong serve`.

Heavy imports are inside it, so that help and usage errors appear at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared_arguments import Name, ProviderName

_MEBIBYTE = 2**20


def serve(
    name: Name = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8000,
    provider: ProviderName = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Of ONNX Runtime; default: the processors there are.")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Most examples in one call of the model.")] = 64,
    batch_delay: Annotated[
        float, typer.Option(help="Milliseconds that a request waits for others, at most.")
    ] = 0.0,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 256,
    max_body: Annotated[float, typer.Option(help="Largest request, MiB.")] = 32.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key that each request must bring; needed off loopback."),
    ] = None,
    log_share: Annotated[float, typer.Option(help="Share of requests to log, 0 to 1.")] = 1.0,
    drift_rate: Annotated[
        float, typer.Option(help="Logged examples a second that are scored for drift, at most.")
    ] = 20.0,
    log_inputs: Annotated[bool, typer.Option("--log-inputs", help="Log the inputs too.")] = False,
    shadow: Annotated[
        float, typer.Option(help="Share of requests that the challenger sees, 0 to 1.")
    ] = 0.0,
    poll: Annotated[float, typer.Option(help="Seconds between looks at the registry.")] = 2.0,
    drain: Annotated[
        float, typer.Option(help="Seconds that requests in flight may take at the end.")
    ] = 30.0,
) -> None:
    """Serve the champion over HTTP (Open Inference Protocol) until SIGTERM or Ctrl-C."""
    from pipelines.core.environment import open_model
    from pipelines.serving.http.settings import ServeSettings
    from pipelines.serving.listening import read_key
    from pipelines.serving.run_server import run_server

    settings = ServeSettings(
        host=host,
        port=port,
        provider=provider,  # type: ignore[arg-type]
        threads=threads,
        max_batch=max_batch,
        batch_delay_ms=batch_delay,
        queue=queue,
        max_body=int(max_body * _MEBIBYTE) if abs(max_body) < _MEBIBYTE else -1,
        api_key=None if api_key_file is None else read_key(api_key_file),
        log_share=log_share,
        drift_rate=drift_rate,
        log_inputs=log_inputs,
        shadow=shadow,
        drain=drain,
        poll=poll,
    )
    layout, model = open_model(name)
    run_server(layout, model, settings)
