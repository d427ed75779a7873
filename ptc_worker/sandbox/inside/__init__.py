"""What runs inside a sandbox, beside hostile code: stdlib and pytest only.

Every environment holds a copy of this package, named `ptc_inside`; see `ptc_worker.environments`.
"""
