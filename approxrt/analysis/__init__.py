"""What the task does not need: statistics, significance, measured latency, and the search for what to take out."""
