"""The demo model as `localoss` makes it on first use: made once by each process of tests, and copied."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from localoss.hub.bundled import install


@functools.cache
def _made() -> Path:
    root = Path(tempfile.mkdtemp(prefix="localoss-demo-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    install(root / "demo", lambda line: None)
    return root / "demo"


def put(folder: Path) -> Path:
    """Give `folder`, now the demo model's."""
    shutil.copytree(_made(), folder)
    return folder


def put_into(home: Path) -> Path:
    """Give the data folder `home`, in which the demo model is installed."""
    put(home / "models" / "demo")
    return home
