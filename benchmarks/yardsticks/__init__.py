"""What the scheduler is compared with: scenarios, policies of other systems, and a lower bound with whole clips."""
