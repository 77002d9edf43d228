"""Tasks on a worker without Ray."""

from ovi_ray.protocol.messages import TaskReport


def finished(worker, request, *inputs) -> TaskReport:
    """Run a task without outputs and wait for its file. Returns the report of its end."""
    report = worker.run(request, *inputs)
    return worker.written(request.number) if report.writes else report
