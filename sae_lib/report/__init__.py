"""Results for people: `plots` from data frames, and `study`, one page per experiment."""
