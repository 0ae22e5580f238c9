"""`gravity conform`: is a stranger's Gravity right, and if not, which mistake is it?

`spec` finds the implementation and its arguments, `drivers` run it, `judge` holds it to
`gravity_core.ErrorBound`, `mutations` has the known mistakes, `checks` is the list of what is
looked at, `worker` runs that in a process of its own, which `runner` watches over.
"""
