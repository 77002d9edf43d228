"""Observers that keep everything they are told, or print the messages."""

from ovi_ray.protocol.observer import JobObserver


class RecordingObserver(JobObserver):
    def __init__(self):
        self.messages, self.snapshots, self.cycles, self.ends = [], [], [], []

    def message(self, text):
        self.messages.append(text)

    def progress(self, snapshot):
        self.snapshots.append(snapshot)

    def cycle(self, cycle):
        self.cycles.append(cycle)

    def ended(self, run):
        self.ends.append(run)

    @property
    def actions(self):
        return [action for cycle in self.cycles for action in cycle.actions]


class PrintingObserver(JobObserver):
    def message(self, text):
        print(text, flush=True)
