"""A configuration file in gunicorn's style: forkserve reads it as ./gunicorn.conf.py, or by `forkserve -c FILE`.

It is Python: names of settings (docs/SETTINGS.md) and of hooks count, all others are its own affair.
"""

import os

bind = os.environ.get("MYSITE_BIND", "127.0.0.1:8000")
workers = int(os.environ.get("MYSITE_WORKERS", "2"))
worker_class = "sync"
timeout = 30
graceful_timeout = 30
keepalive = 75
max_requests = 10_000
max_requests_jitter = 1_000
preload_app = True

loglevel = "info"
accesslog = "-"
errorlog = "-"


def when_ready(server):
    """Runs in the master when the first workers serve."""
    server.log.info("ready: %s", ", ".join(server.cfg.bind))


def post_fork(server, worker):
    """Runs in each worker after its fork: the place to open what must not be shared."""
    worker.log.info("worker %s was forked", worker.age)


def child_exit(server, worker):
    """Runs in the master when a worker has ended."""
    server.log.info("worker %s has ended", worker.pid)
