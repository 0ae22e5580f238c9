"""`gravity conform`: is a stranger's Gravity right, and if not, which mistake is it?

`spec` finds the implementation and its arguments. `session` says what it is to run one, `drivers`
and `frameworks` do that for each kind, and `writable` finds out whether it can be put to some V
and t. `judge` holds it to `gravity_core.ErrorBound`; `mutations` has the known mistakes, of which
`diagnosis` finds the one that was made. `checks` is the list of what is looked at, a `subject` what
has been found out, `start`, `gradients`, `behaviour` and `published` are the checks, fed from
`inputs` and the vectors. `worker` runs them in a process of its own, which `runner` watches over;
`report` writes the result.
"""
