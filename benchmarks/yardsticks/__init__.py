"""What the scheduler is measured against: made-up clusters, policies of other systems, and a bound with whole clips."""
