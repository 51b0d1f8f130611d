"""`approxrt.compress`: a checkpoint, data and a constraint in; a measured artifact and a report out."""
