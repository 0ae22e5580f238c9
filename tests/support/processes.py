"""A torch.distributed job on the loopback interface; all tests of a module share its processes."""

import multiprocessing
import os
import queue
import socket
import traceback
import warnings

from tests.support.limits import HANG


def _serve(rank, world, port, calls, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    warnings.filterwarnings("error", module="gravity")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    while (call := calls.get()) is not None:
        function, arguments = call
        try:
            results.put((rank, function(rank, world, *arguments), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class Processes:
    """`world` processes that form one process group and run functions together."""

    def __init__(self, world):
        context = multiprocessing.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.results = context.Queue()
        self.calls = [context.Queue() for _ in range(world)]
        self.processes = [
            context.Process(
                target=_serve, args=(rank, world, port, calls, self.results), daemon=True
            )
            for rank, calls in enumerate(self.calls)
        ]
        for process in self.processes:
            process.start()

    def run(self, function, *arguments):
        """Return function(rank, world, *arguments) of every rank, in order."""
        for calls in self.calls:
            calls.put((function, arguments))
        answers = {}
        while len(answers) < len(self.calls):
            try:
                rank, result, error = self.results.get(timeout=HANG)
            except queue.Empty:
                self.kill()
                raise AssertionError(f"only {sorted(answers)} answered") from None
            if error is not None:  # the other processes may wait for this rank forever
                self.kill()
                raise AssertionError(f"rank {rank}:\n{error}")
            answers[rank] = result
        return [answers[rank] for rank in sorted(answers)]

    def stop(self):
        for calls in self.calls:
            calls.put(None)
        for process in self.processes:
            process.join(timeout=20)
        self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()
