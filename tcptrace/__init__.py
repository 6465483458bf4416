"""Owner-aware TCP tracing: which process, and which code path, is behind each socket.

The parts live in top-level folders and are imported as ``tcptrace.bpf``,
``tcptrace.probes``, ``tcptrace.cli`` and ``tcptrace.lab``.
"""

__version__ = "0.1.0"
