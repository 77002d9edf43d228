"""The table that the jobs of a cluster share, in this process."""


class FakeTable:
    """A `fair_share.Table`."""

    def __init__(self):
        self.records = {}

    def put(self, key, text):
        self.records[key] = text

    def read(self):
        return dict(self.records)

    def remove(self, key):
        self.records.pop(key, None)
