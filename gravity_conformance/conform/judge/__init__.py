"""What an implementation should have done: the bounds, and which known mistake explains a run."""
