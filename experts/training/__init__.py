"""How experts, rival adapters and networks are trained: one kind of run, and what is trained in it.

`reinforce` is the algorithm, as pure functions; `trl_glue` and `shared_prompts` make TRL's trainer follow it.
`supervised` is next-token prediction, `methods` are SVF's rivals. `expert` goes from a base and a domain to a folder,
with `options`, `evaluation`, `statistics` and `card`. `advice` says why a run may not learn, `passes` which rows pass
through the base together. All trainings share `run`, `trainer`, `validation`, `log` and `processes`.
"""
