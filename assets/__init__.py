"""What exists and from what it is made: one file per stage, and no maths."""
