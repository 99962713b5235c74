"""Methods × domains × seeds: the experiment, its cells, their results, tables and plots."""
