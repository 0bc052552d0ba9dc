"""Stands in for the process of `learners.sampling.vllm_server`, with the transformers sampler.

    python -m tests.vllm_stand_in MODE LIVES SOCKET SETTINGS

LIVES is a file that gets an x at every start and an r at every rest. MODE is lives; dies, at once;
"dies once", at the second request of its first life; or "dies resting".
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

from learners.policy.loading import load_model
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler


def main():
    mode, lives, handle, encoded = sys.argv[1:]
    connection, settings = socket.socket(fileno=int(handle)), json.loads(encoded)
    with Path(lives).open("a") as file:
        file.write("x")
    if mode == "dies":
        sys.exit("no memory left")
    sampler = None
    for line in connection.makefile():
        message = json.loads(line)
        if "load" in message or sampler is None:
            sampler = TransformersSampler(*load_model(settings["folder"]), settings["stop_tags"])
        if "rest" in message and mode == "dies resting":
            sys.exit("no sleep tonight")
        if "rest" in message:
            with Path(lives).open("a") as file:
                file.write("r")
            connection.sendall(b'{"rested": true}\n')
        if "submit" not in message:
            continue
        prefix, prefill, *rest = message["submit"]
        request = Request(tuple(prefix), tuple(prefill), *rest)
        if mode == "dies once" and request.key == "1" and Path(lives).read_text() == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        sampler.submit(request)
        for done, c in sampler.completed():
            result = [done.key, done.position, c.token_ids, c.logprobs, c.entropies, c.stop]
            connection.sendall(json.dumps({"completed": result}).encode() + b"\n")


if __name__ == "__main__":
    main()
