"""What processes of the fork server start from, beside imported modules: what would be the same.

It connects to nothing and starts no thread.
"""

from __future__ import annotations

import unsynchronised
from mlflow.utils.requirements_utils import _init_modules_to_packages_map
from sqlalchemy.orm import configure_mappers

unsynchronised.sqlite()
configure_mappers()  # of MLflow's tables, on the first query otherwise
_init_modules_to_packages_map()  # which package holds a module; read as a model is stored
