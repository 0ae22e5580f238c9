"""`gravity conform`: is an implementation of Gravity right, and if not, which mistake does it make?

`runner` starts a process for one implementation and watches over it; `worker` runs the checks
there; `report` writes the result. Below them are three layers; each imports only those after it:

- `checks`: `registry` lists the checks, which are in `start`, `gradients`, `behaviour` and
  `published`; a `subject` is the implementation, and `findings` has the judge of what it does.
- `judge`: `trial` feeds an implementation, `compare` holds what it did to
  `gravity_core.ErrorBound`, and `diagnosis` looks for the known mistake that explains it.
- `drive`: `spec` finds the implementation and its arguments; `drivers` and `frameworks` construct
  and step each kind of it.
"""
