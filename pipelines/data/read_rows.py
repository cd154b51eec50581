from typing import Any


def read_rows(path: Any, form: Any) -> Any:
    raise NotImplementedError
