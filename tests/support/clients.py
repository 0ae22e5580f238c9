"""Run the code of docs/recipes in processes of their own, without a network.

A process sees only its own libraries, and starts in an empty folder. Warnings that name Gravity's
arguments are errors there. A client's other warnings are its maintainers' matter: they come and go
with each release, and the tests of clients run with the newest.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import HANG
from tests.support.pages import Block, is_there, python_blocks

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "docs" / "recipes"
ROW = re.compile(r"^\| \[(?P<library>[^\]]+)\]\(\S+\) \| `(?P<line>[^`]+)` \|", re.MULTILINE)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MPLBACKEND": "Agg",
}
PREAMBLE = """
import warnings
warnings.filterwarnings("error", message="(?s).*(velocity_std|[Gg]ravity)")
"""
# The wheels of torchvision in the default registry are built for CUDA, and their kernels do not
# load beside a CPU build of torch: torchvision then fails to import. No test calls its kernels, so
# declaring them is enough.
TORCHVISION = """
import torch
try:
    import torchvision
except RuntimeError:
    for name in (
        "nms", "qnms", "deform_conv2d", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool",
        "_deform_conv2d_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward",
        "_roi_align_backward", "_roi_pool_backward",
    ):
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
except ImportError:
    pass
"""


def blocks(page: str) -> dict[str, Block]:
    """Return the blocks of a page by the first library that each needs."""
    text = (RECIPES / page).read_text(encoding="utf-8")
    return {block.needs[0]: block for block in python_blocks(text) if block.needs}


def lines(page: str) -> dict[str, str]:
    """Return the lines of the table in a page, by library."""
    text = (RECIPES / page).read_text(encoding="utf-8")
    return {match["library"]: match["line"] for match in ROW.finditer(text)}


def skip_without(*modules: str) -> None:
    """Skip the test if a library is not installed. Nothing is imported."""
    absent = [module for module in modules if not is_there(module.partition(".")[0])]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")


def run(code: str, folder: Path, *, processes: int = 1) -> str:
    """Run the code in `folder`, in one process or in a group of several; return its output."""
    script = folder / "recipe.py"
    # multiprocessing imports this file again in its children.
    script.write_text(PREAMBLE + TORCHVISION + code, encoding="utf-8")
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    environment = os.environ | ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment["HOME"] = str(folder)  # for caches and logs
    with subprocess.Popen(
        [*command, script.name],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=HANG)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children, too
            raise
    assert process.returncode == 0, output[-8000:]
    return output
