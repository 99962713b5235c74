"""How experts, rival adapters and networks come about: one kind of run, and what is trained in it.

`reinforce` is the algorithm, as pure functions; `trl_glue` and `shared_prompts` have TRL's trainer follow it.
`supervised` is next-token prediction, `methods` are SVF's rivals. `expert` goes from a base and a domain to a folder,
with `options`, `evaluation`, `statistics` and `card`. `advice` says why a run may not learn. Whatever
trains shares `run`, `trainer`, `validation`, `log` and `processes`.
"""
