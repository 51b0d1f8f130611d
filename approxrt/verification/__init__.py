"""What a conversion checks before it says done."""
