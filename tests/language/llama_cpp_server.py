"""llama.cpp's own server on one model: ``python -m tests.language.llama_cpp_server FILE.gguf PORT CONTEXT_SIZE``."""

from __future__ import annotations

import sys
import time

import xllamacpp

_NUM_SLOTS = 2


def main() -> None:
    """Serve until somebody ends the process."""
    file, port, context_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port = file, port
    settings.n_parallel, settings.n_ctx = _NUM_SLOTS, _NUM_SLOTS * context_size
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    server = xllamacpp.Server(settings)
    while server is not None:
        time.sleep(60)


if __name__ == "__main__":
    main()
