"""One worker process: HTTP on top, the engine in the middle, a pipeline below.

Imports point downwards only: ``app`` → ``api`` → ``engine`` → ``pipelines`` → ``errors``, ``beat``.
"""
