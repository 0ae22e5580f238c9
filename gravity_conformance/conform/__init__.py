"""`gravity conform`: check an implementation of Gravity, and name its mistake.

`runner` starts a process for one implementation and monitors it. `worker` runs the checks in that
process, and `unseen` finds the lines of the source that none of them ran. `report` writes the
result. Three layers are below them. Each imports only the layers that follow it in this list:

- `checks`: `registry` lists the checks, which the other modules contain. `subject` describes the
  implementation. `findings` turns its runs into results.
- `judge`: `trial` feeds an implementation. `compare` compares its run with the exact update,
  within `gravity_core.ErrorBound`. `diagnosis` finds the known mistake that explains a difference.
- `gravity_conformance.drive`: `spec` finds the implementation and its arguments, and `source` the
  numbers and names in its source. `drivers` starts sessions, one class for each kind.
"""
