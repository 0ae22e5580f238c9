"""The checks of `gravity conform`: `registry` lists them, `subject` is what they examine."""
