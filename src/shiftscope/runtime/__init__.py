"""Run things: settings, seeds, files, processes, progress and provenance. Nothing here knows what a study is.

- ``settings``: strict, frozen specifications.
- ``seeds``: random streams and deterministic algorithms.
- ``files``: write files atomically and lock folders.
- ``progress``: the events that long work reports.
- ``provenance``: the code and the machine that made a result.
- ``processes`` and ``ray``: run jobs at once, on this machine or on a cluster.
"""
