"""Yardsticks of the scheduler: scenarios, policies of other systems, and a lower bound with whole clips."""
